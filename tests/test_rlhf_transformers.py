"""The reverse direction: transformers reads our model folders and computes the same results."""

import dataclasses

import jax
import numpy as np
import pytest

from language_models import golden, model
from ppo_jax.rlhf.decoder import Decoder, RopeScaling, small
from ppo_jax.rlhf.hf_io import save_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = small(31, hidden_size=32, num_layers=2, max_positions=64, init_std=0.3, pad_id=0)
CONFIGS = {
    "llama": dataclasses.replace(BASE, tied=False, attention_bias=True, mlp_bias=True),
    "linear": dataclasses.replace(BASE, rope_scaling=RopeScaling("linear", 4.0)),
    "llama3": dataclasses.replace(BASE, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16)),
    "mistral": dataclasses.replace(BASE, family="mistral", sliding_window=4),
    "qwen2": dataclasses.replace(BASE, family="qwen2", sliding_window=4, window_from=1),
    "gpt2": dataclasses.replace(BASE, family="gpt2", num_kv_heads=4, activation="gelu_new"),
}
TOKENS = np.arange(24).reshape(2, 12) % 31
MASK = np.array([[1] * 12, [0] * 5 + [1] * 7])


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_answers_the_same(tmp_path, name):
    decoder = Decoder(CONFIGS[name])
    params = decoder.init(jax.random.key(0))
    save_model(tmp_path, decoder, params, max_shard_bytes=20_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    tokens, mask = torch.tensor(TOKENS), torch.tensor(MASK)
    with torch.no_grad():
        want = theirs(
            tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).logits.numpy()
    got = jax.jit(decoder.apply)(params, TOKENS, MASK)
    seen = MASK[..., None] > 0
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(np.where(seen, got, 0), np.where(seen, want, 0), atol=2e-4)


def test_transformers_reads_a_reward_model(tmp_path):
    decoder, params = model("llama_reward")
    save_model(tmp_path, decoder, params)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32
    )
    assert theirs.config.num_labels == 1
    with torch.no_grad():
        score = theirs(torch.tensor(golden("llama")["input_ids"]).long()).logits[:, 0].numpy()
    np.testing.assert_allclose(score, golden("llama_reward")["score_unpadded"], atol=1e-4)
