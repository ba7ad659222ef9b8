"""Model folders: reading, writing and refusals."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from language_models import FAMILIES, golden, model, model_folder, shards_of_llama
from ppo_jax.rlhf import roles, stages, supervised
from ppo_jax.rlhf.decoder import Decoder, RopeScaling, small
from ppo_jax.rlhf.export import save_folder
from ppo_jax.rlhf.hf_config import read_config, write_config
from ppo_jax.rlhf.hf_io import load_model, save_model, to_tensors
from ppo_jax.rlhf.hf_values import ModelError
from ppo_jax.rlhf.stages import write_normalisation
from ppo_jax.rlhf.tokenizer import CharTokenizer
from ppo_jax.runs import manifest

WEIGHTS = "model.safetensors"


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def tensors_of(folder):
    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def rewritten(tmp_path, family="llama", tensors=None, **config):
    """A copy of a model with another config or other tensors."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder(family), folder)
    raw = json.loads((folder / "config.json").read_text())
    raw = {k: v for k, v in (raw | config).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(raw))
    if tensors is not None:
        save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("family", [*FAMILIES, "llama_reward"])
def test_what_was_read_is_written_bit_by_bit(tmp_path, family):
    """The same tensors under the same names, and a config with the same content."""
    decoder, params = model(family)
    save_model(tmp_path, decoder, params)
    written, original = tensors_of(tmp_path), tensors_of(model_folder(family))
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert written[name].dtype == tensor.dtype
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    again, loaded = load_model(tmp_path)
    assert again == decoder
    equal(loaded, params)
    theirs = json.loads((model_folder(family) / "config.json").read_text())
    ours = json.loads((tmp_path / "config.json").read_text())
    assert ours["architectures"] == theirs["architectures"]
    for name in ("vocab_size", "eos_token_id", "pad_token_id", "rope_parameters", "dtype"):
        assert ours.get(name) == theirs.get(name), name


def test_any_flipped_bit_of_a_model_of_our_own_is_named(tmp_path):
    """Weights have no digests of their own: any changed number would be loaded."""
    decoder, params = model("gpt2")
    save_model(tmp_path, decoder, params, model_folder("gpt2"))
    entries = manifest.read(tmp_path)
    assert entries.keys() == {p.name for p in tmp_path.iterdir()} - {manifest.NAME}
    for file in tmp_path.iterdir():
        whole = file.read_bytes()
        for place in {len(whole) // 3, len(whole) // 2, len(whole) - 2}:
            flipped = bytearray(whole)
            flipped[place] ^= 4
            file.write_bytes(flipped)
            with pytest.raises(ModelError, match=rf"{file.name} is damaged.* delete"):
                load_model(tmp_path)
        file.write_bytes(whole)
    (tmp_path / WEIGHTS).write_bytes(flipped)
    (tmp_path / manifest.NAME).unlink()  # folders of other programs have none
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="has neither"):
        load_model(tmp_path)


def test_a_tokenizer_that_is_written_later_is_listed_too(tmp_path):
    decoder, params = model("gpt2")
    for letters in ("abc", "abcd"):
        save_model(tmp_path, decoder, params)
        CharTokenizer(letters).save(tmp_path)
        assert "tokenizer.json" in manifest.read(tmp_path)
        load_model(tmp_path)


def test_a_model_is_written_over_links_and_not_through_them(tmp_path):
    (tmp_path / "model").mkdir()
    names = ("config.json", WEIGHTS, "tokenizer.json", "manifest.json", "reward.json")
    for name in names:
        (tmp_path / name).write_text("theirs")
        (tmp_path / "model" / name).symlink_to(tmp_path / name)
    decoder, params = model("gpt2")
    save_model(tmp_path / "model", decoder, params, b"{}")
    write_normalisation(tmp_path / "model", 0.0, 1.0)
    assert {(tmp_path / name).read_text() for name in names} == {"theirs"}
    load_model(tmp_path / "model")


def test_links_of_a_folder_of_another_program_are_followed(tmp_path):
    """Links to files, as in the cache of the Hugging Face hub."""
    for file in model_folder("gpt2").iterdir():
        (tmp_path / file.name).symlink_to(file)
    equal(load_model(tmp_path)[1], model("gpt2")[1])


def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path):
    save_folder(tmp_path / "model", lambda folder: (folder / "a").write_text("1"))
    with pytest.raises(ZeroDivisionError):
        save_folder(tmp_path / "model", lambda folder: 1 / 0)
    assert (tmp_path / "model/a").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_both_styles_of_config_say_the_same(family):
    styles = [
        json.loads((model_folder(family) / name).read_text())
        for name in ("config.json", "config.transformers4.json")
    ]
    new, old = map(read_config, styles)
    assert new == old == model(family)[0].config


def test_shards_are_written_and_read(tmp_path):
    """Shards written by us, and those of transformers with its own index."""
    decoder, params = model("llama")
    save_model(tmp_path / "ours", decoder, params, max_shard_bytes=100_000)
    files = sorted(p.name for p in (tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 4 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    theirs = rewritten(tmp_path)
    (theirs / "shards.json").unlink(missing_ok=True)
    shards = json.loads(shards_of_llama().read_text())
    tensors = load_file(theirs / WEIGHTS)
    for file in set(shards["weight_map"].values()):
        here = {k: v for k, v in tensors.items() if shards["weight_map"][k] == file}
        save_file(here, theirs / file)
    (theirs / WEIGHTS).unlink()
    shutil.copy(shards_of_llama(), theirs / "model.safetensors.index.json")
    for folder in (tmp_path / "ours", theirs):
        equal(load_model(folder)[1], params)
    # After it is overwritten by one file, no shards are left.
    save_model(theirs, decoder, params)
    assert [p.name for p in theirs.glob("*.safetensors*")] == [WEIGHTS]
    equal(load_model(theirs)[1], params)


def test_bfloat16_weights_are_read_and_written(tmp_path):
    """Weights are converted to float32 without loss, or kept; logits equal those of
    transformers."""
    tensors = {
        k: v.astype(jnp.bfloat16) for k, v in load_file(model_folder("llama") / WEIGHTS).items()
    }
    folder = rewritten(tmp_path, tensors=tensors)
    decoder, params = load_model(folder)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    logits = jax.jit(decoder.apply)(params, golden("llama")["input_ids"])
    np.testing.assert_allclose(logits, golden("llama_bf16")["logits"], atol=2e-5)
    _, kept = load_model(folder, param_dtype=None)
    assert {x.dtype.name for x in jax.tree.leaves(kept)} == {"bfloat16"}
    save_model(tmp_path / "again", decoder, kept)
    written = tensors_of(tmp_path / "again")
    assert all(np.array_equal(written[k], tensors[k]) for k in tensors)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_names_may_lack_the_prefix_and_buffers_are_passed_over(tmp_path, family):
    prefix = {"gpt2": "transformer.", "llama": "model."}[family]
    tensors = load_file(model_folder(family) / WEIGHTS)
    bare = {name.removeprefix(prefix): x for name, x in tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 4, 4), bool)
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    equal(load_model(rewritten(tmp_path, family, bare))[1], model(family)[1])


def test_a_tied_head_on_disk_is_the_embedding(tmp_path):
    tensors = load_file(model_folder("gpt2") / WEIGHTS)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    _, params = load_model(rewritten(tmp_path, "gpt2", tensors))
    assert "head" not in params


def test_a_head_that_is_not_the_embedding_is_kept(tmp_path):
    """Although config.json ties them, as in transformers; and one without the embedding is tied."""
    tensors = load_file(model_folder("gpt2") / WEIGHTS)
    other = tensors["transformer.wte.weight"] * 2
    decoder, params = load_model(
        rewritten(tmp_path / "a", "gpt2", tensors | {"lm_head.weight": other})
    )
    assert not decoder.config.tied
    np.testing.assert_array_equal(params["head"]["kernel"], other.T)
    save_model(tmp_path / "c", decoder, params)
    equal(load_model(tmp_path / "c")[1], params)
    alone = tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}
    del alone["transformer.wte.weight"]
    equal(load_model(rewritten(tmp_path / "b", "gpt2", alone))[1], model("gpt2")[1])


def test_all_tokens_that_end_a_text_are_read(tmp_path):
    """Those of config.json and those of generation_config.json, which transformers generates by."""
    folder = rewritten(tmp_path, eos_token_id=0)
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    decoder, _ = load_model(folder)
    assert decoder.config.eos_ids == (0, 2)
    assert roles.ends(decoder, CharTokenizer("ab")) == (0, 2)
    (folder / "generation_config.json").write_text('{"eos_token_id": ["a"]}')
    with pytest.raises(ModelError, match="eos_token_id is 'a'; it must be a token id"):
        load_model(folder)


def test_a_reward_model_without_a_padding_token_gets_one(tmp_path):
    """transformers scores no batches without; the first token of a text is never the last."""
    decoder, params = model("llama_reward")
    config = dataclasses.replace(decoder.config, pad_id=None, bos_id=1, eos_ids=(2,))
    assert write_config(config, True, "float32")["pad_token_id"] == 1
    assert write_config(config, False, "float32")["pad_token_id"] is None
    same = dataclasses.replace(config, bos_id=2)
    assert write_config(same, True, "float32")["pad_token_id"] is None


def test_training_a_reward_model_takes_the_padding_token_of_the_tokenizer(tmp_path):
    """The token that the exported model is padded with is the one that training leaves out."""
    decoder = Decoder(small(5, hidden_size=8, num_layers=1, num_heads=2))
    params = decoder.with_score(decoder.init(jax.random.key(0)))
    rows = supervised.preference_rows(*[(np.ones((2, 3), int),) * 2] * 2, np.zeros(2))
    config = supervised.Config(batch_size=2, updates=1)
    tokenizer = CharTokenizer("ab")
    job = stages.reward_model(decoder, params, rows, config, center=0.0, seed=0,
                              language=stages.Language(tokenizer))  # fmt: skip
    job.result(job.init(), tmp_path)
    assert json.loads((tmp_path / "model/config.json").read_text())["pad_token_id"] == 0


def test_a_critic_is_written_as_a_classifier(tmp_path):
    decoder, params = model("qwen2")
    critic = decoder.with_score(params, jax.random.key(0))
    save_model(tmp_path, decoder, critic)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"] == ["Qwen2ForSequenceClassification"]
    assert raw["id2label"] == {"0": "LABEL_0"} and raw["pad_token_id"] == 0
    assert tensors_of(tmp_path)["score.weight"].shape == (1, 64)
    equal(load_model(tmp_path)[1], critic)


def test_configs_survive():
    """All properties of a model in config.json are preserved."""
    base = small(29, pad_id=3, eos_ids=(1, 2), bos_id=None)
    for config in (
        base,
        dataclasses.replace(base, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64)),
        dataclasses.replace(base, rope_scaling=RopeScaling("linear", 2.0), tied=False),
        dataclasses.replace(base, attention_bias=True, mlp_bias=True, eos_ids=()),
        dataclasses.replace(base, family="mistral", sliding_window=7),
        dataclasses.replace(base, family="qwen2", sliding_window=7, full_layers=(0,)),
        dataclasses.replace(model("gpt2")[0].config, activation="gelu", tied=False),
    ):
        assert read_config(json.loads(json.dumps(write_config(config, False, "float32")))) == config


def test_biases_and_an_untied_head_have_names(tmp_path):
    config = dataclasses.replace(
        small(13, hidden_size=16, num_layers=1), attention_bias=True, mlp_bias=True, tied=False
    )
    decoder = Decoder(config)
    params = decoder.init(jax.random.key(0))
    names = set(to_tensors(decoder, params))
    for name in ("self_attn.o_proj.bias", "self_attn.q_proj.bias", "mlp.gate_proj.bias"):
        assert f"model.layers.0.{name}" in names
    assert "lm_head.weight" in names
    save_model(tmp_path, decoder, params)
    equal(load_model(tmp_path)[1], params)


def test_tokenizers_are_copied_as_they_are(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_bytes(b'{"a": 1}')
    (source / "tokenizer_config.json").write_bytes(b"{}")
    decoder, params = model("llama")
    save_model(tmp_path / "a", decoder, params, tokenizer=source)
    save_model(tmp_path / "b", decoder, params, tokenizer=b"[]")
    # Into the same folder, and from a folder without one.
    save_model(tmp_path / "a", decoder, params, tokenizer=tmp_path / "a")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == b'{"a": 1}'
    assert (tmp_path / "a" / "tokenizer_config.json").exists()
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == b"[]"


def test_folders_that_are_no_model_are_refused(tmp_path):
    with pytest.raises(ModelError, match="nowhere is not a folder"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"no config.json in it \(it contains: notes.txt\)"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json is not JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object, not list"):
        load_model(tmp_path)
    shutil.copy(model_folder("llama") / "config.json", tmp_path)
    with pytest.raises(ModelError, match="has neither model.safetensors nor"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(ModelError, match="pytorch_model.bin is a pickle: save the model as"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "lama"}, "'lama', which is not supported; did you mean llama?"),
        ({"model_type": "bert"}, r"supported: gpt2, llama, mistral, qwen2, "),
        ({"model_type": ...}, "model_type is None"),
        ({"hidden_size": ...}, "config.json has no hidden_size"),
        ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "ntk"}}, "rope_type is 'ntk', which is not supported"),
        ({"num_key_value_heads": 3}, "num_kv_heads is 3, which must divide num_heads 4"),
        (
            {"intermediate_size": 99},
            r"layers.0.mlp.gate_proj.weight has shape \[176, 64\]; according to config.json it "
            r"must be \[99, 64\]",
        ),
        ({"num_hidden_layers": 3}, "no tensor layers.2.input_layernorm.weight, .* and 6 more"),
        (
            {"num_hidden_layers": 1},
            "tensor layers.1.input_layernorm.weight, .* is not part of a llama",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        load_model(rewritten(tmp_path, **change))


def test_what_gpt2_can_be_but_this_decoder_cannot_is_refused(tmp_path):
    folder = rewritten(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ModelError, match="scale_attn_by_inverse_layer_idx is True; only False"):
        load_model(folder)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    tensors = load_file(model_folder("llama") / WEIGHTS)
    other = dict(tensors)
    other["model.norm.wieght"] = other.pop("model.norm.weight")
    with pytest.raises(ModelError, match="no tensor norm.weight; the nearest is norm.wieght"):
        load_model(rewritten(tmp_path / "a", tensors=other))
    with pytest.raises(ModelError, match="tensor v_head.weight is not part of a llama model"):
        load_model(rewritten(tmp_path / "b", tensors=tensors | {"v_head.weight": np.ones(3)}))
    integers = tensors | {"model.norm.weight": np.ones(64, np.int32)}
    with pytest.raises(ModelError, match="norm.weight is int32; weights must be floating"):
        load_model(rewritten(tmp_path / "c", tensors=integers))


def test_damaged_files_are_refused(tmp_path):
    """A truncated file is never accepted as a model."""
    folder = rewritten(tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(ModelError, match="damaged or not a safetensors file"):
            load_model(folder)
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names model-00001-of-00001.safetensors, which does not"):
        load_model(folder)


@pytest.mark.parametrize(
    "weight_map, message",
    [
        (None, "weight_map is None; it must be an object"),
        ({}, "weight_map is {}"),
        (["a"], r"weight_map is \['a'\]"),
        ({"a": "../x"}, r"names the file '../x'; it must be the name of a file in the same folder"),
        ({"a": "/etc/passwd"}, "names the file '/etc/passwd'"),
        ({"a": ""}, "names the file ''"),
        ({"a": ".."}, r"names the file '\.\.'"),
        ({"a": 3}, "names the file 3"),
        (..., "weight_map is None"),
    ],
)
def test_an_index_names_files_of_its_folder(tmp_path, weight_map, message):
    folder = rewritten(tmp_path)
    (folder / WEIGHTS).rename(tmp_path / "x")
    index = {} if weight_map is ... else {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "BOOL"])
def test_weights_of_8_bits_are_refused(tmp_path, dtype):
    """Quantised weights, also where config.json does not mention them."""
    folder = rewritten(tmp_path, tensors={"model.norm.weight": np.zeros(64, np.uint8)})
    whole = (folder / WEIGHTS).read_bytes()
    name = f'"{dtype}"'.encode()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")].replace(b'"U8"', name)
    data = whole[8 + int.from_bytes(whole[:8], "little") :]
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data)
    with pytest.raises(ModelError, match="model.norm.weight has the type F8|no tensor"):
        load_model(folder)
