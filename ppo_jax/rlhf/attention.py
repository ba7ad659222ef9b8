"""Causal self-attention with grouped key-value heads, rotary positions, padding, a sliding window
and a cache."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ppo_jax.rlhf.decoder_config import DecoderConfig, RopeScaling
from ppo_jax.rlhf.linear import Dense

# The number that is added to the attention scores of masked keys. It is finite, so that a query
# without any unmasked key averages over all keys instead of dividing 0 by 0 (no loss reads such a
# position), and half of the most negative float32, so that it stays finite when a score is added.
FORBIDDEN = float(np.finfo(np.float32).min) / 2


class KeyValue(NamedTuple):
    """Keys and values of one layer, each [B, K, S, head_dim] for K heads and S columns."""

    key: jax.Array
    value: jax.Array


def rope_frequencies(config: DecoderConfig) -> np.ndarray:
    """Rotation angles per position, θ_i = base^(−2i / head_dim), scaled by `config.rope_scaling`.

    llama3: with wavelength λ_i = 2π / θ_i and context C, θ_i is unchanged where λ_i < C / high,
    becomes θ_i / factor where λ_i > C / low, and in between is s θ_i + (1 − s) θ_i / factor with
    s = (C / λ_i − low) / (high − low).

    Returns:
        [head_dim / 2] float32, angles in radians.

    Source: Su et al. 2021, RoFormer, eq. 15; Grattafiori et al. 2024, The Llama 3 Herd of Models.
    """
    half = np.arange(0, config.head_dim, 2, dtype=np.float64)
    theta = config.rope_theta ** (-half / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return theta.astype(np.float32)
    return (theta * _stretch(theta, scaling)).astype(np.float32)


def _stretch(theta: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    if scaling.kind == "linear":
        return np.full_like(theta, 1.0 / scaling.factor)
    turns = scaling.original_max_positions * theta / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep + (1.0 - keep) / scaling.factor


def rotations(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, cos) and (−sin, sin) of the angles at positions [B, T].

    Returns:
        Two arrays [B, T, head_dim] float32, for `rotate`.
    """
    angles = positions[..., None].astype(jnp.float32) * rope_frequencies(config)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    turn = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    # Without the barrier XLA recomputes sine and cosine in every layer and head, in both passes.
    return jax.lax.optimization_barrier(turn)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate the pairs (x_i, x_{i + head_dim/2}) of x [B, T, H, head_dim] by the angles."""
    cos, sin = (r[:, :, None, :] for r in rotation)
    y = x.astype(jnp.float32)
    # The gradient of a roll is a roll. The gradients of two halves would be padded and added.
    return (y * cos + jnp.roll(y, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)


def attend(
    query: jax.Array, kv: KeyValue, allowed: jax.Array, implementation: str = "plain"
) -> jax.Array:
    """softmax(q·k / √head_dim) v over the allowed keys, with the softmax in float32.

    Args:
        query: [B, T, H, head_dim] queries.
        kv: keys and values [B, K, S, head_dim]; each of the K heads serves H / K query heads.
        allowed: [B, T, S] bool, True where the query attends to the key.
        implementation: "plain" for products and a softmax with all scores in memory, "xla" or
            "cudnn" for the implementation of that name of jax.nn.dot_product_attention. A single
            query per row, as in generation with a cache, always uses "plain": its scores are small.

    Returns:
        [B, T, H * head_dim] outputs of all heads; finite also for queries without an allowed key.

    Source: Vaswani et al. 2017, Attention Is All You Need, eq. 1; Ainslie et al. 2023, GQA.
    """
    if implementation == "plain" or query.shape[1] == 1:
        return _attend_plain(query, kv, allowed)
    return _attend_fused(query, kv, allowed, implementation)


def _attend_plain(query: jax.Array, kv: KeyValue, allowed: jax.Array) -> jax.Array:
    batch, length, heads, head_dim = query.shape
    groups = kv.key.shape[1]
    # With heads before columns both products are plain batched matrix products.
    q = query.reshape(batch, length, groups, heads // groups, head_dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, groups, -1, head_dim)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, kv.key, preferred_element_type=jnp.float32)
    bias = jnp.where(allowed, 0.0, FORBIDDEN)[:, None]
    scores = scores * head_dim**-0.5 + jnp.tile(bias, (1, 1, heads // groups, 1))
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    out = jnp.einsum("bkqs,bksd->bkqd", weights, kv.value)
    out = out.reshape(batch, groups, heads // groups, length, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads * head_dim)


def _attend_fused(
    query: jax.Array, kv: KeyValue, allowed: jax.Array, implementation: str
) -> jax.Array:
    batch, length, heads, head_dim = query.shape
    key, value = (x.transpose(0, 2, 1, 3) for x in kv)
    # The gradients of cuDNN's kernel with a mask need even numbers of queries and keys.
    odd = [(0, n % 2) for n in (length, key.shape[1])]
    query = jnp.pad(query, [(0, 0), odd[0], (0, 0), (0, 0)])
    key, value = (jnp.pad(x, [(0, 0), odd[1], (0, 0), (0, 0)]) for x in (key, value))
    mask = jnp.pad(allowed, [(0, 0), *odd])[:, None]
    out = jax.nn.dot_product_attention(
        query, key, value, mask=mask, implementation=cast(Any, implementation)
    )
    return out[:, :length].reshape(batch, length, heads * head_dim)


class Attention(nn.Module):
    """The projections to queries, keys and values, attention, and the output projection."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: tuple[jax.Array, jax.Array] | None,
        allowed: jax.Array,
        *,
        past: KeyValue | None = None,
        column: jax.Array | int = 0,
    ) -> tuple[jax.Array, KeyValue]:
        """Attend from x [B, T, D] to x, or to the cache `past` with x written at `column`.

        Returns:
            Outputs [B, T, D], and the keys and values that were attended to.
        """
        c = self.config

        def project(name: str, heads: int) -> jax.Array:
            y = _dense(c, heads * c.head_dim, bias=c.qkv_bias, std=c.init_std, name=name)(x)
            return y.reshape(*y.shape[:2], heads, c.head_dim)

        query, key = project("q", c.num_heads), project("k", c.num_kv_heads)
        value = project("v", c.num_kv_heads)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        kv = KeyValue(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))
        if past is not None:
            kv = jax.tree.map(
                lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, 0, column, 0)), past, kv
            )
        out = attend(query, kv, allowed, c.attention)
        std = c.init_std * (2 * c.num_layers) ** -0.5
        return _dense(c, c.hidden_size, bias=c.out_bias, std=std, name="o")(out), kv


def _dense(config: DecoderConfig, features: int, *, bias: bool, std: float, name: str) -> Dense:
    return Dense(
        features,
        use_bias=bias,
        dtype=jnp.dtype(config.dtype),
        kernel_init=nn.initializers.normal(std),
        name=name,
    )
