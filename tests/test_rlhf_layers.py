"""Layers of a decoder whose backward pass is written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ppo_jax.rlhf.norms import LayerNorm, root_mean_square_normalized
from ppo_jax.rlhf.transformer import activation, gated

SHAPE = (2, 3, 5)


def draws(count):
    keys = jax.random.split(jax.random.key(0), count)
    return [jax.random.normal(key, SHAPE) for key in keys]


@pytest.mark.parametrize("name", ["silu", "relu", "gelu", "gelu_new"])
@pytest.mark.parametrize("with_up", [True, False])
def test_a_gated_activation_has_the_gradients_of_automatic_differentiation(name, with_up):
    gate, up, g = draws(3)
    inputs = (gate, up) if with_up else (gate,)
    ours = lambda gate, up=None: gated(name, gate, up)
    plain = lambda gate, up=1.0: activation(name)(gate) * up
    y, pull = jax.vjp(ours, *inputs)
    expected, expected_pull = jax.vjp(plain, *inputs)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    for got, want in zip(pull(g), expected_pull(g), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_norm_has_the_gradients_of_automatic_differentiation(dtype):
    x, g, weights = draws(3)
    x, scale = x.astype(dtype), 1.0 + weights[0, 0]

    def plain(x, scale):
        y = x.astype(jnp.float32)
        return y / jnp.sqrt(jnp.mean(y**2, axis=-1, keepdims=True) + 0.1) * scale

    y, pull = jax.vjp(lambda x, scale: root_mean_square_normalized(x, scale, 0.1), x, scale)
    expected, expected_pull = jax.vjp(plain, x, scale)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    for got, want in zip(pull(g), expected_pull(g), strict=True):
        assert got.dtype == want.dtype
        tolerance = 1e-5 if got.dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(np.float32(got), np.float32(want), atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_norm_has_the_gradients_of_the_one_of_linen(dtype):
    x, g, weights = draws(3)
    x = 3.0 + x.astype(dtype)
    params = {"scale": 1.0 + weights[0, 0], "bias": weights[0, 1]}
    ours = LayerNorm(0.1, jnp.dtype(dtype))
    linen = nn.LayerNorm(epsilon=0.1, dtype=dtype, use_fast_variance=False)
    assert jax.tree.all(
        jax.tree.map(jnp.array_equal, *(m.init(jax.random.key(0), x) for m in (ours, linen)))
    )
    y, pull = jax.vjp(lambda p, x: ours.apply({"params": p}, x), params, x)
    expected, expected_pull = jax.vjp(lambda p, x: linen.apply({"params": p}, x), params, x)
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(np.float32(y), np.float32(expected), atol=tolerance)
    gradients = (jax.tree.leaves(f(g.astype(dtype))) for f in (pull, expected_pull))
    for got, want in zip(*gradients, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(np.float32(got), np.float32(want), atol=tolerance)
