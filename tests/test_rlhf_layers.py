"""Layers of a decoder whose backward pass is written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.rlhf.norms import root_mean_square_normalized
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
