"""The reverse direction: transformers reads our model folders and computes the same results.

`.ci/peers` runs these tests in an environment with transformers and torch.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from language_models import CONFIGS, NEWER, golden, model, model_folder
from ppo_jax.rlhf.decoder import Decoder, RopeScaling, small
from ppo_jax.rlhf.generate import generate
from ppo_jax.rlhf.hf_config import read_config
from ppo_jax.rlhf.hf_io import load_model, save_model

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = small(29, hidden_size=32, num_layers=2, max_positions=64, pad_id=0)
WINDOWED = {"sliding_window": 4, "full_layers": (0,)}
OURS = CONFIGS | {
    "llama": dataclasses.replace(BASE, tied=False, attention_bias=True, mlp_bias=True),
    "linear": dataclasses.replace(BASE, rope_scaling=RopeScaling("linear", 4.0)),
    "llama3": dataclasses.replace(BASE, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16)),
    "mistral": dataclasses.replace(BASE, family="mistral", sliding_window=4),
    "qwen2": dataclasses.replace(BASE, family="qwen2", **WINDOWED),
    "gpt2": dataclasses.replace(BASE, family="gpt2", num_kv_heads=4, activation="gelu_new"),
}
TOKENS = np.arange(24).reshape(2, 12) % 29
MASK = np.array([[1] * 12, [0] * 5 + [1] * 7])


def theirs_of(folder, kind="CausalLM", **options):
    options = {"dtype": torch.float32, "attn_implementation": "eager"} | options
    return getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("name", OURS)
def test_transformers_answers_the_same(tmp_path, name, record_property):
    """Logits of rows with padding on the left, and greedy tokens with the cache."""
    decoder = Decoder(dataclasses.replace(OURS[name], init_std=0.3))
    params = decoder.init(jax.random.key(0))
    save_model(tmp_path, decoder, params, max_shard_bytes=20_000)
    theirs, tokens, mask = theirs_of(tmp_path), torch.tensor(TOKENS), torch.tensor(MASK)
    with torch.no_grad():
        want = theirs(
            tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).logits.numpy()
        written = theirs.generate(
            tokens, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )[:, 12:].numpy()  # fmt: skip
    got = jax.jit(decoder.apply)(params, TOKENS, MASK)
    seen = MASK[..., None] > 0
    assert np.abs(want).max() > 0.5
    difference = np.abs(np.where(seen, got - want, 0)).max()
    record_property("largest difference", float(difference))
    assert difference < 2e-5 * np.abs(want).max(), difference
    ours = generate(
        jax.random.key(0), params, TOKENS, MASK, decoder=decoder, max_new_tokens=8,
        temperature=0.0, eos_id=None,
    )  # fmt: skip
    np.testing.assert_array_equal(ours.tokens, written)


@pytest.mark.parametrize("name", NEWER)
def test_a_config_that_transformers_writes_again_is_read_the_same(tmp_path, name):
    """Our config.json, read and written by transformers, and its own without default values."""
    decoder, params = model(name)
    save_model(tmp_path, decoder, params)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    raw = json.loads((tmp_path / "again" / "config.json").read_text())
    assert read_config(raw) == decoder.config
    theirs = transformers.AutoConfig.from_pretrained(model_folder(name))
    short = theirs.to_diff_dict() | {"model_type": theirs.model_type}
    assert read_config(json.loads(json.dumps(short))) == decoder.config


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"])
def test_transformers_scores_batches_as_we_do(tmp_path, name):
    """Reward models whose padding token also ends texts; padding on either side."""
    decoder = Decoder(dataclasses.replace(OURS[name], init_std=0.3, pad_id=3, eos_ids=(3,)))
    params = decoder.with_score(decoder.init(jax.random.key(0)), jax.random.key(1))
    save_model(tmp_path, decoder, params)
    tokens = np.array([[5, 6, 7, 3, 3, 3], [5, 6, 7, 8, 9, 3], [3, 3, 5, 6, 7, 3]])
    mask = np.array([[1, 1, 1, 1, 0, 0], [1] * 6, [0, 0, 1, 1, 1, 1]])
    theirs = theirs_of(tmp_path, "SequenceClassification")
    assert theirs.config.num_labels == 1 and theirs.config.pad_token_id == 3
    ids, kept = torch.tensor(tokens), torch.tensor(mask)
    with torch.no_grad():
        positions = (kept.cumsum(1) - 1).clamp(min=0)
        want = theirs(ids, attention_mask=kept, position_ids=positions).logits[:, 0].numpy()
    decoder, params = load_model(tmp_path)
    np.testing.assert_allclose(jax.jit(decoder.score)(params, tokens, mask), want, atol=2e-5)


def test_transformers_reads_a_reward_model(tmp_path):
    decoder, params = model("llama_reward")
    save_model(tmp_path, decoder, params)
    theirs = theirs_of(tmp_path, "SequenceClassification")
    assert theirs.config.num_labels == 1
    with torch.no_grad():
        score = theirs(torch.tensor(golden("llama")["input_ids"]).long()).logits[:, 0].numpy()
    np.testing.assert_allclose(score, golden("llama_reward")["score_unpadded"], atol=1e-5)


def test_transformers_reads_weights_of_16_bits(tmp_path):
    decoder, params = model("qwen3")
    for dtype in ("bfloat16", "float16"):
        save_model(tmp_path / dtype, decoder, jax.tree.map(lambda x, d=dtype: x.astype(d), params))
        theirs = theirs_of(tmp_path / dtype, dtype="auto")
        assert theirs.dtype == getattr(torch, dtype)
        embedding = theirs.get_input_embeddings().weight.detach().float().numpy()
        np.testing.assert_array_equal(embedding, params["embedding"].astype(dtype))


def test_tokenizers_agree_on_special_tokens(tmp_path):
    """Tokens that stand in tokenizer_config.json alone."""
    from ppo_jax.rlhf.tokenizer import load_tokenizer
    from test_rlhf_tokenizer import byte_level, write

    count = byte_level(tmp_path).get_vocab_size()
    added = {
        str(count): {"content": "<|im_end|>", "special": True, "lstrip": False, "rstrip": False,
                     "single_word": False, "normalized": False},
    }  # fmt: skip
    write(tmp_path, tokenizer_config={
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
        "added_tokens_decoder": added,
    })  # fmt: skip
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    text = "the thesis<|im_end|>the theme"
    assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.eos_id == theirs.eos_token_id == count
