"""Normalisation layers of a decoder."""

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
        y = x.astype(jnp.float32)
        factor = jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (y * (factor * (1.0 + scale if self.unit_offset else scale))).astype(self.dtype)


def norm(config: DecoderConfig, name: str) -> nn.Module:
    """LayerNorm for gpt2, RMSNorm for the others, with statistics in float32.

    Source: Ba et al. 2016, Layer Normalization.
    """
    dtype = jnp.dtype(config.dtype)
    if config.structure.learned_positions:
        return nn.LayerNorm(
            epsilon=config.norm_eps, dtype=dtype, use_fast_variance=False, name=name
        )
    return RMSNorm(config.norm_eps, config.structure.unit_offset, dtype, name=name)
