"""LoRA adapters: the identity initially, the defined sum after training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.rlhf import lora
from ppo_jax.rlhf.decoder import Decoder, small

DECODER = Decoder(small(11, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1))
PARAMS = DECODER.init(jax.random.key(0))


def test_fresh_adapters_change_nothing_at_all():
    adapters = lora.init(jax.random.key(1), PARAMS, 2, ("q", "k", "v", "o", "gate", "up", "down"))
    assert len(jax.tree.leaves(adapters)) == 2 * 7 * 2
    merged = lora.merge(PARAMS, adapters, 3.0)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(PARAMS), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_merged_matrix_is_the_sum_and_the_rest_is_untouched():
    adapters = lora.init(jax.random.key(1), PARAMS, 2)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    merged = lora.merge(PARAMS, adapters, 0.5)
    for layer in ("layer_0", "layer_1"):
        for name in ("q", "v"):
            ab = adapters[layer]["attention"][name]
            np.testing.assert_allclose(
                merged[layer]["attention"][name]["kernel"],
                PARAMS[layer]["attention"][name]["kernel"] + 0.5 * ab["a"] @ ab["b"],
                atol=1e-6,
            )
        assert merged[layer]["mlp"] is PARAMS[layer]["mlp"]
        assert merged[layer]["attention"]["o"] is PARAMS[layer]["attention"]["o"]
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    kernel = lora.merge(half, adapters)["layer_0"]["attention"]["q"]["kernel"]
    assert kernel.dtype == jnp.bfloat16


def test_at_first_only_b_has_a_gradient():
    adapters = lora.init(jax.random.key(1), PARAMS, 2)
    tokens = jnp.array([[1, 2, 3, 4]])

    @jax.jit
    @jax.grad
    def gradient(adapters):
        return jnp.square(DECODER.apply(lora.merge(PARAMS, adapters), tokens)).sum()

    for layer in gradient(adapters).values():
        for ab in layer["attention"].values():
            np.testing.assert_array_equal(ab["a"], 0)
            assert np.abs(ab["b"]).max() > 0


def test_the_scale_of_a_is_that_of_its_rows():
    wide = {"layer_0": {"attention": {"q": {"kernel": jnp.zeros((400, 5))}}, "mlp": {}}}
    a = lora.init(jax.random.key(0), wide, 50, ("q",))["layer_0"]["attention"]["q"]["a"]
    assert a.shape == (400, 50) and abs(float(a.std()) * 20 - 1) < 0.05


def test_unknown_targets_and_ranks_are_refused():
    with pytest.raises(ValueError, match="no matrix is called 'gates'; did you mean gate?"):
        lora.init(jax.random.key(0), PARAMS, 2, ("gates",))
    with pytest.raises(ValueError, match="rank is 0"):
        lora.init(jax.random.key(0), PARAMS, 0)
