"""Normalisation layers of a decoder."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from ppo_jax.rlhf.decoder_config import DecoderConfig


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) ⊙ w, or ⊙ (1 + w), with statistics in float32.

    Attributes:
        epsilon: number ε that is added to the mean square.
        unit_offset: whether the factor is 1 + w; then w starts at 0, otherwise at 1.
        dtype: dtype of the result.

    Source: Zhang & Sennrich 2019, Root Mean Square Layer Normalization, eq. 4.
    """

    epsilon: float
    unit_offset: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis of x [..., F]."""
        init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],)).astype(jnp.float32)
        factor = 1.0 + scale if self.unit_offset else scale
        return root_mean_square_normalized(x, factor, self.epsilon).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def root_mean_square_normalized(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x r ⊙ w with r = 1 / √(mean x² + ε).

    The gradients are those of automatic differentiation, ∂x = r (w ⊙ g − x r² mean(x ⊙ w ⊙ g)) and
    ∂w = Σ_rows g ⊙ x r. Written in this way, the backward pass stores x and r alone and is faster
    on CPUs. There is no forward-mode derivative.

    Args:
        x: [..., F] inputs.
        scale: [F] float32 factors w.
        epsilon: number ε that is added to the mean square.

    Returns:
        [..., F] float32 outputs.
    """
    return _forward(x, scale, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, epsilon: float) -> tuple[jax.Array, tuple]:
    y = x.astype(jnp.float32)
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)
    return y * (factor * scale), (x, factor, scale)


def _backward(epsilon: float, kept: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, factor, scale = kept
    y = x.astype(jnp.float32)
    shared = jnp.mean(y * (g * scale), axis=-1, keepdims=True) * factor**3
    rows = tuple(range(x.ndim - 1))
    dx = g * scale * factor - y * shared
    return dx.astype(x.dtype), jnp.sum(g * (y * factor), axis=rows)


root_mean_square_normalized.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
    """(x − mean x) / √(var x + ε) ⊙ w + b, with statistics in float32; linen's parameters.

    Attributes:
        epsilon: number ε that is added to the variance.
        dtype: dtype of the result.

    Source: Ba et al. 2016, Layer Normalization.
    """

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis of x [..., F]."""
        width = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, width).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, width).astype(jnp.float32)
        return (standardized(x, self.epsilon) * scale + bias).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardized(x: jax.Array, epsilon: float) -> jax.Array:
    """(x − mean x) r with r = 1 / √(var x + ε).

    The gradient is that of automatic differentiation, r (g − mean g − z mean(g ⊙ z)) for outputs z.
    Written in this way, it is faster on CPUs: automatic differentiation adds the terms one by one
    to the gradient of the residual stream, and XLA then computes the sums of all later layers again
    in each layer. There is no forward-mode derivative.

    Args:
        x: [..., F] inputs.
        epsilon: number ε that is added to the variance.

    Returns:
        [..., F] float32 outputs.
    """
    return _standardize(x, epsilon)[0]


def _standardize(x: jax.Array, epsilon: float) -> tuple[jax.Array, tuple]:
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(variance + epsilon)
    return (y - mean) * factor, (x, mean, factor)


def _standardize_backward(epsilon: float, kept: tuple, g: jax.Array) -> tuple[jax.Array]:
    x, mean, factor = kept
    z = (x.astype(jnp.float32) - mean) * factor
    along = jnp.mean(g * z, axis=-1, keepdims=True)
    dx = factor * (g - jnp.mean(g, axis=-1, keepdims=True) - z * along)
    return (dx.astype(x.dtype),)


standardized.defvjp(_standardize, _standardize_backward)


def norm(config: DecoderConfig, name: str) -> nn.Module:
    """LayerNorm for gpt2, RMSNorm for the others, with statistics in float32.

    Source: Ba et al. 2016, Layer Normalization.
    """
    dtype = jnp.dtype(config.dtype)
    if config.structure.learned_positions:
        return LayerNorm(config.norm_eps, dtype, name=name)
    return RMSNorm(config.norm_eps, config.structure.unit_offset, dtype, name=name)
