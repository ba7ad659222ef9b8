"""Causal self-attention with grouped key-value heads, padding, a sliding window and a cache."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ppo_jax.rlhf.decoder_config import DecoderConfig
from ppo_jax.rlhf.linear import Dense
from ppo_jax.rlhf.norms import norm
from ppo_jax.rlhf.rope import Rotation, rotate
from ppo_jax.types import PyTree

# The number that is added to the attention scores of masked keys. It is finite, so that a query
# without any unmasked key averages over all keys instead of dividing 0 by 0 (no loss reads such a
# position), and half of the most negative float32, so that it stays finite when a score is added.
FORBIDDEN = float(np.finfo(np.float32).min) / 2


class KeyValue(NamedTuple):
    """Keys and values of one layer, each [B, K, S, head_dim] for K heads and S columns."""

    key: jax.Array
    value: jax.Array


def attend(
    query: jax.Array,
    kv: KeyValue,
    allowed: jax.Array,
    implementation: str = "plain",
    *,
    scalar: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """softmax(q·k / √scalar) v over the allowed keys, with the softmax in float32.

    Args:
        query: [B, T, H, head_dim] queries.
        kv: keys and values [B, K, S, head_dim]; each of the K heads serves H / K query heads.
        allowed: [B, T, S] bool, True where the query attends to the key.
        implementation: "plain" for products and a softmax with all scores in memory, "xla" or
            "cudnn" for the implementation of that name of jax.nn.dot_product_attention. A single
            query per row, as in generation with a cache, always uses "plain", because its scores
            are small; so do scores with a bound, which the other implementations do not have.
        scalar: number whose square root divides the scores; None for head_dim.
        softcap: bound c of the scores s, which become c tanh(s / c); None for no bound.

    Returns:
        [B, T, H * head_dim] outputs of all heads; finite also for queries without an allowed key.

    Source: Vaswani et al. 2017, Attention Is All You Need, eq. 1; Ainslie et al. 2023, GQA;
    Gemma Team 2024, Gemma 2, section 2 (the soft cap).
    """
    scale = (scalar or query.shape[-1]) ** -0.5
    if implementation == "plain" or query.shape[1] == 1 or softcap is not None:
        return _attend_plain(query, kv, allowed, scale, softcap=softcap)
    return _attend_fused(query, kv, allowed, scale, implementation=implementation)


def _attend_plain(
    query: jax.Array, kv: KeyValue, allowed: jax.Array, scale: float, *, softcap: float | None
) -> jax.Array:
    batch, length, heads, head_dim = query.shape
    groups = kv.key.shape[1]
    # With heads before columns both products are plain batched matrix products.
    q = query.reshape(batch, length, groups, heads // groups, head_dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, groups, -1, head_dim)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, kv.key, preferred_element_type=jnp.float32)
    bias = jnp.where(allowed, 0.0, FORBIDDEN)[:, None]
    scores = scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores + jnp.tile(bias, (1, 1, heads // groups, 1))
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    out = jnp.einsum("bkqs,bksd->bkqd", weights, kv.value)
    out = out.reshape(batch, groups, heads // groups, length, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads * head_dim)


def _attend_fused(
    query: jax.Array, kv: KeyValue, allowed: jax.Array, scale: float, *, implementation: str
) -> jax.Array:
    batch, length, heads, head_dim = query.shape
    key, value = (x.transpose(0, 2, 1, 3) for x in kv)
    # The gradients of cuDNN's kernel with a mask need even numbers of queries and keys.
    odd = [(0, n % 2) for n in (length, key.shape[1])]
    query = jnp.pad(query, [(0, 0), odd[0], (0, 0), (0, 0)])
    key, value = (jnp.pad(x, [(0, 0), odd[1], (0, 0), (0, 0)]) for x in (key, value))
    mask = jnp.pad(allowed, [(0, 0), *odd])[:, None]
    out = jax.nn.dot_product_attention(
        query, key, value, mask=mask, scale=scale, implementation=cast(Any, implementation)
    )
    return out[:, :length].reshape(batch, length, heads * head_dim)


class Attention(nn.Module):
    """The projections to queries, keys and values, attention, and the output projection.

    Attributes:
        config: architecture of the model.
        last: number of last columns of x that have outputs; None for all T.
    """

    config: DecoderConfig
    last: int | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation | None,
        allowed: jax.Array,
        *,
        past: KeyValue | None = None,
        column: jax.Array | int = 0,
    ) -> tuple[jax.Array, KeyValue]:
        """Attend from x [B, T, D] to x, or to the cache `past` with x written at `column`.

        Returns:
            Outputs [B, T, D], or those of the last columns, and the keys and values that were
            attended to.
        """
        c = self.config

        def project(x: jax.Array, name: str, heads: int, normed: str) -> jax.Array:
            y = _dense(c, heads * c.head_dim, bias=c.qkv_bias, std=c.init_std, name=name)(x)
            if normed == "all":
                y = norm(c, f"{name}_norm")(y)
            y = y.reshape(*y.shape[:2], heads, c.head_dim)
            return norm(c, f"{name}_norm")(y) if normed == "head" else y

        query = project(last_columns(x, self.last), "q", c.num_heads, c.structure.qk_norm)
        key = project(x, "k", c.num_kv_heads, c.structure.qk_norm)
        value = project(x, "v", c.num_kv_heads, "none")
        if rotation is not None:
            query = rotate(query, last_columns(rotation, self.last))
            key = rotate(key, rotation)
        kv = KeyValue(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))
        if past is not None:
            kv = jax.tree.map(
                lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, 0, column, 0)), past, kv
            )
        out = attend(
            query,
            kv,
            last_columns(allowed, self.last),
            c.attention,
            scalar=c.query_pre_attn_scalar,
            softcap=c.attention_softcap,
        )
        std = c.init_std * (2 * c.num_layers) ** -0.5
        return _dense(c, c.hidden_size, bias=c.out_bias, std=std, name="o")(out), kv


def last_columns(x: PyTree, count: int | None) -> PyTree:
    """The last `count` columns of each leaf [B, T, ...]; all columns if count is None."""
    return x if count is None else jax.tree.map(lambda leaf: leaf[:, -count:], x)


def _dense(config: DecoderConfig, features: int, *, bias: bool, std: float, name: str) -> Dense:
    return Dense(
        features,
        use_bias=bias,
        dtype=jnp.dtype(config.dtype),
        kernel_init=nn.initializers.normal(std),
        name=name,
    )
