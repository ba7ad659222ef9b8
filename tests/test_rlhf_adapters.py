"""Adapter folders of PEFT, in and out, and LoRA in every stage of training."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from language_models import golden, model_folder
from ppo_jax.rlhf import hf_adapters, lora, scoring, stages, supervised, train
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.hf_io import load_model, save_model
from ppo_jax.rlhf.hf_values import ModelError
from ppo_jax.rlhf.lora import Lora
from ppo_jax.rlhf.policy import make_policy
from ppo_jax.rlhf.stages import Language
from reference import golden_file

DECODER = Decoder(small(11, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1))
PARAMS = DECODER.init(jax.random.key(0))
ADAPTERS = Lora(2, 8.0, ("q", "v", "down"))


def golden_adapter(name):
    """(folder that PEFT 0.21 wrote, logits of transformers and PEFT for the golden tokens)."""
    folder = golden_file(f"llm/{name}")
    with np.load(folder / "expected.npz") as file:
        return folder, file["logits"]


@pytest.mark.parametrize("name", ["llama_lora", "gpt2_lora", "llama_reward_lora"])
def test_an_adapter_folder_is_the_model_of_peft(name):
    """Different ranks and scales per module, rslora, a fused matrix, and a trained score head."""
    folder, expected = golden_adapter(name)
    base = name.partition("_")[0]
    tokens = golden(base)["input_ids"]
    decoder, params = load_model(folder)
    if expected.shape[-1] == 1:
        assert set(params) == {*load_model(model_folder(base))[1], "score"} - {"head"}
        got = jax.jit(decoder.score)(params, tokens)[:, None]
    else:
        apply = jax.jit(decoder.apply)
        got = apply(params, tokens)
        before = apply(load_model(model_folder(base))[1], tokens)
        assert np.abs(before - expected).max() > 1.0
    np.testing.assert_allclose(got, expected, atol=3e-4)


@pytest.fixture
def adapter(tmp_path):
    """A copy of an adapter folder, with the path of its base model."""
    folder = tmp_path / "adapter"
    shutil.copytree(golden_file("llm/llama_lora"), folder)
    change(folder, base_model_name_or_path=str(model_folder("llama")))
    return folder


def change(folder, **fields):
    path = folder / hf_adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; it must be one of \"LORA\": only LoRA"),
        ({"use_dora": True}, "use_dora is True, a feature that is not supported; only plain LoRA"),
        ({"use_new_idea": {"x": 1}}, "use_new_idea is {'x': 1}, a feature that is not supported"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is .*; only the score head"),
        ({"modules_to_save": ["score"]}, "modules_to_save is .*; only the score head of a SEQ_CLS"),
        ({"bias": "lora_only"}, "bias is 'lora_only'; it must be one of \"none\", null"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; .* change the weights"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM'; it must be one of"),
        ({"alora_invocation_tokens": [1]}, "adapters of some tokens only are not supported"),
        ({"base_model_name_or_path": "some/hub"}, "'some/hub', which is not a folder; download"),
        ({"base_model_name_or_path": None}, "is None, which is not a folder; download"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x'; it must be a number"),
        ({"lora_alpha": None}, "lora_alpha is None; it must be a number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is .*; it must be an object"),
        ({"alpha_pattern": {"[": 1}}, r"alpha_pattern has '\['"),
    ],
)
def test_what_cannot_be_read_is_refused(adapter, fields, message):
    change(adapter, **fields)
    with pytest.raises(ModelError, match=message):
        load_model(adapter)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (("q_proj.lora_A", "q_proj.lora_magnitude"), "lora_magnitude.weight is not supported"),
        (("q_proj.lora_B", "q_proj.lora_X"), "q_proj has a lora_A and no lora_B"),
        (("layers.0", "layers.7"), "layers.7.mlp.down_proj is not a matrix of the base model"),
        (("v_proj", "o_proj"), r"o_proj changes a matrix of \[32, 64\], .* has \[64, 64\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(adapter, rename, message):
    path = adapter / hf_adapters.WEIGHTS
    save_file({k.replace(*rename): x for k, x in load_file(path).items()}, path)
    with pytest.raises(ModelError, match=message):
        load_model(adapter)


def test_an_adapter_without_safetensors_or_of_an_adapter_is_refused(adapter, tmp_path):
    (adapter / hf_adapters.WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="adapter_model.bin is a pickle: save the adapter as safe"):
        load_model(adapter)
    (tmp_path / "second").mkdir()
    shutil.copy(adapter / hf_adapters.CONFIG, tmp_path / "second")
    change(tmp_path / "second", base_model_name_or_path=str(adapter))
    with pytest.raises(ModelError, match="is itself an adapter; merge it first"):
        load_model(tmp_path / "second")


def trained_adapters(decoder, params, adapters=ADAPTERS):
    """Adapters as after training: neither A nor B is zero."""
    trained = adapters.init(jax.random.key(1), params)
    return jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), trained)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_that_leave_come_back(tmp_path, family):
    """Also with GPT-2's fused matrix, of which only q and v have adapters."""
    kind = {"family": "gpt2", "num_kv_heads": 2, "activation": "gelu_new"}
    config = DECODER.config if family == "llama" else dataclasses.replace(DECODER.config, **kind)
    decoder = Decoder(config)
    params = decoder.init(jax.random.key(0))
    targets = ("q", "v", "o", "down") if family == "gpt2" else ADAPTERS.targets
    adapters = Lora(2, 8.0, targets)
    trained = trained_adapters(decoder, params, adapters)
    save_model(tmp_path / "base", decoder, params)
    folder = tmp_path / "adapter"
    folder.mkdir()
    hf_adapters.save_adapter(
        folder, decoder=decoder, trained=trained, adapters=adapters, base=tmp_path / "base"
    )
    _, read = load_model(folder)
    wanted = lora.merge(params, trained, adapters.scale)
    assert jax.tree.structure(read) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_attached_adapters_compute_the_sum():
    """The product with A and B beside the frozen matrix equals that with their sum."""
    trained = trained_adapters(DECODER, PARAMS)
    attached = ADAPTERS.attach(PARAMS, trained)
    tokens = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    apply = jax.jit(DECODER.apply)
    plain = apply(lora.merge(PARAMS, trained, ADAPTERS.scale), tokens)
    assert np.abs(plain - apply(PARAMS, tokens)).max() > 0.01
    np.testing.assert_allclose(apply(attached, tokens), plain, atol=1e-5)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    kernel = lora.fold(ADAPTERS.attach(half, trained))["layer_0"]["attention"]["q"]["kernel"]
    assert kernel.dtype == jnp.bfloat16


def size_of(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_only_adapters_have_optimizer_state():
    """Two moments of Adam for the bytes of the adapters, and little besides."""
    trained = ADAPTERS.init(jax.random.key(1), PARAMS)
    widths = {"q": 16 + 16, "v": 16 + 8, "down": 48 + 16}
    assert size_of(trained) == 2 * 2 * 4 * sum(widths.values())
    state = supervised.init(jax.random.key(0), trained, supervised.Config())
    assert 2 * size_of(trained) <= size_of(state.learner.opt_state) < 2 * size_of(trained) + 64


def rows():
    tokens = np.tile(np.arange(8) % 11, (8, 1))
    return tokens, np.ones_like(tokens)


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_a_supervised_stage_trains_adapters_alone(tmp_path, kind):
    tokens, mask = rows()
    config = supervised.Config(batch_size=4, updates=6, learning_rate=1e-2)
    params = PARAMS if kind == "sft" else DECODER.with_score(PARAMS, jax.random.key(3))
    data = (
        supervised.text_rows(tokens, mask, mask)
        if kind == "sft"
        else supervised.preference_rows((tokens, mask), (tokens[:, ::-1], mask), np.zeros(8))
    )
    make = stages.fine_tuning if kind == "sft" else stages.reward_model
    save_model(tmp_path / "base", DECODER, PARAMS)
    language = Language(SimpleNamespace(pad_id=0), tmp_path / "base", tmp_path / "base")
    extra = {} if kind == "sft" else {"center": 0.0}
    job = make(DECODER, params, data, config, seed=0, language=language, adapters=ADAPTERS, **extra)
    step, state = jax.jit(job.step), job.init()
    assert set(state.learner.params) == {"layer_0", "layer_1"} | ({"score"} & set(params))
    losses = []
    for _ in range(6):
        state, metrics, _ = step(state, job.frozen, {})
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.02
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(job.frozen["base"]), strict=True):
        assert old is new
    job.result(state, tmp_path)
    whole, alone = (load_model(tmp_path / name)[1] for name in ("model", stages.ADAPTER))
    assert jax.tree.structure(whole) == jax.tree.structure(alone)
    moved = (
        whole["layer_0"]["attention"]["q"]["kernel"] - params["layer_0"]["attention"]["q"]["kernel"]
    )
    assert np.abs(moved).max() > 1e-4
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def program(**fields):
    reward = scoring.from_model(DECODER, DECODER.with_score(PARAMS, jax.random.key(2)))
    models = train.Models(
        DECODER, PARAMS, DECODER, DECODER.with_score(PARAMS), PARAMS, reward
    )  # fmt: skip
    config = train.Config(num_prompts=4, max_new_tokens=3, **fields)
    hyper = train.algorithms.Config(epochs=1, minibatches=1)
    prompts = np.ones((4, 2), np.int32)
    return train.build(models, prompts, prompts, config, hyper=hyper, eos_id=None)


def test_actor_and_critic_are_adapters():
    options = {"lora_rank": 2, "lora_targets": ("q", "down")}
    made = program(lora_critic=True, **options)
    state = made.init(jax.random.key(0))
    actor, critic = (state.learner.params[name] for name in ("actor", "critic"))
    assert set(actor["layer_1"]["mlp"]) == {"down"} and set(actor["layer_0"]["attention"]) == {"q"}
    assert set(critic) == {*actor, "score"}
    trained = size_of(state.learner.params)
    assert trained == 2 * size_of(actor) + 16 * 4
    assert 2 * trained <= size_of(state.learner.opt_state) < 2 * trained + 64
    joined = made.policy.join(state.learner.params, made.frozen)
    assert made.frozen["critic"]["embedding"] is PARAMS["embedding"]  # no memory of its own
    assert joined["critic"]["score"]["kernel"] is critic["score"]["kernel"]
    # Without the option the critic is trained entirely.
    assert set(program(**options).init(jax.random.key(0)).learner.params["critic"]) == {
        *PARAMS, "score",
    }  # fmt: skip


@pytest.mark.slow
def test_a_critic_of_adapters_learns():
    made = program(lora_rank=2, lora_critic=True)
    state = made.init(jax.random.key(0))
    after, metrics = jax.jit(made.step)(state, made.frozen)
    assert np.isfinite(float(metrics["loss"]))
    critic = after.learner.params["critic"]
    assert np.abs(critic["score"]["kernel"]).max() > 0
    for _ in range(2):  # B has a gradient once the head is not zero
        after, _ = jax.jit(made.step)(after, made.frozen)
    assert np.abs(after.learner.params["critic"]["layer_0"]["attention"]["q"]["b"]).max() > 0


def test_impossible_options_of_adapters_are_refused():
    with pytest.raises(ValueError, match="lora_critic needs lora_rank > 0 .* is 0"):
        program(lora_critic=True)
    with pytest.raises(ValueError, match="no matrix is called 'q_proj'; did you mean q?"):
        program(lora_rank=2, lora_targets=("q_proj",)).init(jax.random.key(0))
    with pytest.raises(ValueError, match="there are no targets of the adapters; choose from: q, k"):
        Lora(2, targets=()).init(jax.random.key(0), PARAMS)


def test_a_policy_without_adapters_joins_nothing():
    params = {"actor": PARAMS, "critic": {}}
    assert make_policy(DECODER, "none", length=2).join(params, {}) is params


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "reward"])
def test_peft_reads_the_adapters_that_are_written(tmp_path, family):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base = model_folder("gpt2" if family == "gpt2" else "llama")
    decoder, params = load_model(base)
    if family == "reward":
        params = decoder.with_score(params, jax.random.key(2))
    targets = ("q", "v", "o", "up", "down") if family == "gpt2" else lora.TARGETS
    adapters = Lora(3, 6.0, targets)
    trained = trained_adapters(decoder, params, adapters)
    hf_adapters.save_adapter(
        tmp_path, decoder=decoder, trained=trained, adapters=adapters, base=base
    )
    tokens = golden("gpt2" if family == "gpt2" else "llama")["input_ids"]
    auto = transformers.AutoModelForCausalLM
    more = {}
    if family == "reward":
        auto, more = transformers.AutoModelForSequenceClassification, {"num_labels": 1}
    theirs = auto.from_pretrained(base, dtype=torch.float32, **more)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    with torch.no_grad():
        want = theirs(torch.tensor(np.asarray(tokens)).long()).logits.numpy()
    whole = adapters.attach(params, trained)
    if family == "reward":
        got = decoder.score(whole, tokens)[:, None]
    else:
        got = decoder.apply(whole, tokens)
        assert np.abs(decoder.apply(params, tokens) - want).max() > 0.5
    np.testing.assert_allclose(got, want, atol=3e-4)
