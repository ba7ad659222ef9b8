"""Rotary positions: frequencies, their scaling, and the rotation of queries and keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf.decoder_config import DecoderConfig, RopeScaling

Rotation = tuple[jax.Array, jax.Array]


def rope_frequencies(config: DecoderConfig, local: bool = False) -> np.ndarray:
    """Rotation angles per position, θ_i = base^(−2i / d), scaled by `config.rope_scaling`.

    Here d is the number of rotated elements of a head, and C the original context. The scaled
    frequency is s_i θ_i + (1 − s_i) θ_i / factor, with

    - linear: s_i = 0
    - llama3: s_i = (C / λ_i − low) / (high − low), clipped to [0, 1], with the wavelengths
      λ_i = 2π / θ_i
    - yarn: s_i = 1 − (i − a) / (b − a), clipped to [0, 1], where a and b are the dimensions that
      rotate beta_fast and beta_slow times in the original context

    and for longrope θ_i / short_factors_i.

    Args:
        config: architecture of the model.
        local: whether the frequencies are those of layers with a sliding window, which have a base
            of their own and no scaling.

    Returns:
        [d / 2] float32, angles in radians.

    Source: Su et al. 2021, RoFormer, eq. 15; Grattafiori et al. 2024, The Llama 3 Herd of Models;
    Peng et al. 2023, YaRN, section 3.2; Ding et al. 2024, LongRoPE.
    """
    size = config.rotary_dim
    base = config.local_rope_theta if local else config.rope_theta
    assert base is not None
    theta = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    scaling = None if local else config.rope_scaling
    if scaling is None:
        return theta.astype(np.float32)
    if scaling.kind == "longrope":
        return (theta / np.array(scaling.short_factors)).astype(np.float32)
    kept = _kept(theta, base, scaling)
    return (theta * (kept + (1.0 - kept) / scaling.factor)).astype(np.float32)


def _kept(theta: np.ndarray, base: float, scaling: RopeScaling) -> np.ndarray:
    """The part of each frequency that is not divided by the factor."""
    if scaling.kind == "linear":
        return np.zeros_like(theta)
    if scaling.kind == "yarn":
        return _kept_by_yarn(len(theta), base, scaling)
    turns = scaling.original_max_positions * theta / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((turns - low) / (high - low), 0.0, 1.0)


def _kept_by_yarn(count: int, base: float, scaling: RopeScaling) -> np.ndarray:
    def dimension(turns: float) -> float:
        """The index of the frequency that rotates so many times in the original context."""
        return (
            count
            * math.log(scaling.original_max_positions / (2 * math.pi * turns))
            / math.log(base)
        )

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * count - 1)
    # Equal bounds are a step, which transformers approximates with this width.
    width = last - first if last != first else 0.001
    return 1.0 - np.clip((np.arange(count) - first) / width, 0.0, 1.0)


def rotations(config: DecoderConfig, positions: jax.Array, local: bool = False) -> Rotation:
    """(cos, cos) and (−sin, sin) of the angles at positions [B, T], times the amplitude.

    Args:
        config: architecture of the model.
        positions: [B, T] positions of the tokens.
        local: whether the frequencies are those of layers with a sliding window.

    Returns:
        Two arrays [B, T, rotary_dim] float32, for `rotate`.
    """
    angles = positions[..., None].astype(jnp.float32) * rope_frequencies(config, local)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if config.rope_scaling is not None and not local and config.rope_scaling.amplitude != 1:
        cos, sin = (x * config.rope_scaling.amplitude for x in (cos, sin))
    turn = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    # Without the barrier XLA recomputes sine and cosine in every layer and head, in both passes.
    return jax.lax.optimization_barrier(turn)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotate the pairs (x_i, x_{i + d/2}) of the first d elements of x [B, T, H, head_dim]."""
    cos, sin = (r[:, :, None, :] for r in rotation)
    size = cos.shape[-1]
    if size < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :size], rotation), x[..., size:]], axis=-1)
    y = x.astype(jnp.float32)
    # The gradient of a roll is a roll. The gradients of two halves would be padded and added.
    return (y * cos + jnp.roll(y, size // 2, axis=-1) * sin).astype(x.dtype)
