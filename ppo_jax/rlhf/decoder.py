"""A decoder-only language model as pure functions of its parameters.

`Decoder` is hashable and holds no arrays, so it can be closed over or passed to jit as static. The
parameters are a nested dict: `embedding` [V, D], `layer_0` … , `norm`, for gpt2 `positions`, and
`head` {kernel [D, V]} if it is not the transposed embedding. A model that scores texts instead of
continuing them has `score` {kernel [D, 1]} and no head.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.rlhf.attention import KeyValue, rotations
from ppo_jax.rlhf.decoder_config import DecoderConfig, RopeScaling, small
from ppo_jax.rlhf.token_distribution import head_logits
from ppo_jax.rlhf.transformer import Block, Trunk
from ppo_jax.types import Params

__all__ = ["Cache", "Decoder", "DecoderConfig", "RopeScaling", "positions_of", "small"]


@struct.dataclass
class Cache:
    """Keys and values of the columns so far, and room for those to come.

    Attributes:
        layers: per layer, keys and values [B, K, S, head_dim].
        mask: [B, S] bool, columns that may be attended to.
        positions: [B, S] int32, positions of the tokens in the columns.
        next_position: [B] int32, of the token to come.
        column: [] int32, where the next token is written, in all rows.
    """

    layers: tuple[KeyValue, ...]
    mask: jax.Array
    positions: jax.Array
    next_position: jax.Array
    column: jax.Array


def positions_of(mask: jax.Array) -> jax.Array:
    """Positions of tokens among padding on either side: max(Σ_{s<=t} m_s − 1, 0).

    The first unmasked token has position 0 wherever it stands.

    Args:
        mask: [B, L], nonzero for tokens.

    Returns:
        [B, L] int32.
    """
    return jnp.maximum(jnp.cumsum(mask > 0, axis=1, dtype=jnp.int32) - 1, 0)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The functions of a model with a given config.

    Padding may stand on either side: masked columns are never attended to, and the results there
    mean nothing, but are finite.

    Attributes:
        config: what the model is made of.
    """

    config: DecoderConfig

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters: N(0, init_std²), the projections that end a residual branch divided by
        √(2 layers), norms the identity, biases 0.

        Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section
        2.3.
        """
        # One program: a fresh model in a fresh process else compiles every draw by itself.
        return jax.jit(self._fresh)(key)

    def _fresh(self, key: jax.Array) -> Params:
        c = self.config
        trunk_key, layers_key, head_key = jax.random.split(key, 3)
        one = jnp.zeros((1, 1), jnp.int32)
        keys = (one > -1, one, jnp.arange(1))
        params = dict(Trunk(c, depth=0).init(trunk_key, one, one, keys)["params"])
        x = jnp.zeros((1, 1, c.hidden_size), jnp.dtype(c.dtype))
        rotation = None if c.family == "gpt2" else rotations(c, one)

        def layer(key: jax.Array) -> Params:
            return Block(c).init(key, x, rotation, one[None] > -1, past=None, column=0)["params"]

        # All layers at once, in half a dozen draws: one for each array takes a minute to compile on
        # a GPU. Without the barrier XLA makes them so again.
        layers = jax.vmap(layer)(jax.random.split(layers_key, c.num_layers))
        layers = jax.lax.optimization_barrier(layers)
        for i in range(c.num_layers):
            params[f"layer_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
        if not c.tied:
            kernel = c.init_std * jax.random.normal(head_key, (c.hidden_size, c.vocab_size))
            params["head"] = {"kernel": kernel}
        return params

    def apply(self, params: Params, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits of the token after each column.

        Args:
            params: the model's.
            tokens: [B, L] int.
            mask: [B, L], nonzero for tokens, 0 for padding; None if there is no padding.

        Returns:
            [B, L, V] float32.
        """
        return self.logits(params, self.hidden(params, tokens, mask))

    def hidden(self, params: Params, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """[B, L, D] states after the final norm, in the config's dtype; arguments as of `apply`."""
        return self._forward(params, tokens, mask)[0]

    def head(self, params: Params) -> jax.Array:
        """[D, V] the matrix from hidden states to logits."""
        return params["embedding"].T if self.config.tied else params["head"]["kernel"]

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """[..., V] float32 from hidden states [..., D]."""
        return head_logits(hidden, self.head(params))

    def init_cache(self, batch: int, length: int) -> Cache:
        """A cache of `length` empty columns."""
        c = self.config
        empty = jnp.zeros((batch, c.num_kv_heads, length, c.head_dim), jnp.dtype(c.dtype))
        return Cache(
            layers=tuple(KeyValue(empty, empty) for _ in range(c.num_layers)),
            mask=jnp.zeros((batch, length), bool),
            positions=jnp.zeros((batch, length), jnp.int32),
            next_position=jnp.zeros((batch,), jnp.int32),
            column=jnp.int32(0),
        )

    def prefill(
        self, params: Params, tokens: jax.Array, mask: jax.Array | None, length: int
    ) -> tuple[jax.Array, Cache]:
        """Read prompts into a cache of `length` columns.

        Args:
            params: the model's.
            tokens: [B, P] int, P <= length.
            mask: [B, P], nonzero for tokens; None if there is no padding.
            length: columns of the cache, prompt included.

        Returns:
            [B, P, D] states after the final norm, and the cache.
        """
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask > 0
        self._check_length(length)
        room = length - tokens.shape[1]
        if room < 0:
            raise ValueError(f"a cache of {length} columns cannot hold {tokens.shape[1]} tokens")
        hidden, layers = self._forward(params, tokens, mask)
        widen = lambda x, axis: jnp.pad(x, [(0, room if a == axis else 0) for a in range(x.ndim)])
        return hidden, Cache(
            layers=jax.tree.map(lambda x: widen(x, 2), layers),
            mask=widen(mask, 1),
            positions=widen(positions_of(mask), 1),
            next_position=jnp.sum(mask, axis=1, dtype=jnp.int32),
            column=jnp.int32(tokens.shape[1]),
        )

    def step(self, params: Params, cache: Cache, token: jax.Array) -> tuple[jax.Array, Cache]:
        """Read one more token per row.

        Args:
            params: the model's.
            cache: what was read so far; there must be room for one more.
            token: [B] int.

        Returns:
            [B, D] states after the final norm, and the cache with the tokens in it.
        """
        here = (jnp.int32(0), cache.column)
        ones = jnp.ones((token.shape[0], 1), bool)
        position = cache.next_position[:, None]
        mask = jax.lax.dynamic_update_slice(cache.mask, ones, here)
        positions = jax.lax.dynamic_update_slice(cache.positions, position, here)
        keys = (mask, positions, jnp.arange(mask.shape[1]))
        hidden, layers = self._trunk(
            params, token[:, None], position, keys, past=cache.layers, column=cache.column
        )
        return hidden[:, 0], Cache(
            layers, mask, positions, cache.next_position + 1, cache.column + 1
        )

    def values(self, params: Params, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """What the score head says at each column, v_t = w · h_t.

        Returns:
            [B, L] float32; arguments as of `apply`, `params` with a score head.
        """
        hidden = self.hidden(params, tokens, mask).astype(jnp.float32)
        return (hidden @ params["score"]["kernel"].astype(jnp.float32))[..., 0]

    def score(self, params: Params, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """What the score head says at the last token that is not masked.

        Returns:
            [B] float32; arguments as of `values`.
        """
        values = self.values(params, tokens, mask)
        if mask is None:
            return values[:, -1]
        last = tokens.shape[1] - 1 - jnp.argmax((mask > 0)[:, ::-1], axis=1)
        return jnp.take_along_axis(values, last[:, None], axis=1)[:, 0]

    def with_score(self, params: Params, key: jax.Array | None = None) -> Params:
        """The same trunk with a score head in place of the head.

        Args:
            params: the model's, with or without a score head.
            key: for weights from N(0, 1 / (D + 1)); None makes them 0, so that a critic starts at 0
                everywhere.

        Source: Stiennon et al. 2020, Learning to summarize from human feedback (the scale).
        """
        size = self.config.hidden_size
        kernel = jnp.zeros((size, 1))
        if key is not None:
            kernel = jax.random.normal(key, (size, 1)) * (size + 1) ** -0.5
        trunk = {name: x for name, x in params.items() if name not in ("head", "score")}
        return trunk | {"score": {"kernel": kernel}}

    def _forward(
        self, params: Params, tokens: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        self._check_length(tokens.shape[1])
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask > 0
        positions = positions_of(mask)
        keys = (mask, positions, jnp.arange(tokens.shape[1]))
        return self._trunk(params, tokens, positions, keys)

    def _trunk(
        self, params: Params, *args: Any, **cached: Any
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        # Linen types what apply returns for any module; this module returns these.
        return cast(Any, Trunk(self.config).apply({"params": params}, *args, **cached))

    def _check_length(self, length: int) -> None:
        c = self.config
        if c.family == "gpt2" and length > c.max_positions:
            raise ValueError(
                f"{length} tokens, but the model has positions for {c.max_positions}: shorten the "
                "prompts or the responses"
            )
