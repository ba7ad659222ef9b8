"""A decoder-only language model as pure functions of its parameters.

A `Decoder` is hashable and holds no arrays, so that it can be closed over or be a static argument
of jit. The parameters are a nested dict with the keys `embedding` [V, D], `layer_0`, `layer_1`, …
and `norm`; gpt2 also has `positions`; a model whose head is not the transposed embedding has
`head` {kernel [D, V]}. A model that scores texts instead of continuing them has `score`
{kernel [D, 1]} and no `head`.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.rlhf.attention import KeyValue
from ppo_jax.rlhf.decoder_config import DecoderConfig, RopeScaling, small
from ppo_jax.rlhf.rope import rotations
from ppo_jax.rlhf.token_distribution import CHUNK, TokenDistribution, head_logits
from ppo_jax.rlhf.transformer import Block, Trunk
from ppo_jax.types import Params

__all__ = ["Cache", "Decoder", "DecoderConfig", "RopeScaling", "positions_of", "small"]


@struct.dataclass
class Cache:
    """Keys and values of the tokens read so far, with empty columns for the following ones.

    Attributes:
        layers: keys and values [B, K, S, head_dim] of each layer.
        mask: [B, S] bool, True for columns that may be attended to.
        positions: [B, S] int32, positions of the tokens in the columns.
        next_position: [B] int32, position of the next token of each row.
        column: [] int32, index of the column that the next token of every row is written to.
    """

    layers: tuple[KeyValue, ...]
    mask: jax.Array
    positions: jax.Array
    next_position: jax.Array
    column: jax.Array


def positions_of(mask: jax.Array) -> jax.Array:
    """Positions of tokens in rows padded on either side: max(Σ_{s<=t} m_s − 1, 0).

    The first unmasked token has position 0, whichever column it is in.

    Args:
        mask: [B, L] mask, nonzero for tokens.

    Returns:
        [B, L] int32 positions.
    """
    return jnp.maximum(jnp.cumsum(mask > 0, axis=1, dtype=jnp.int32) - 1, 0)


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The functions of a model with a given config.

    Rows may be padded on either side: masked columns are never attended to, and the results in
    masked columns are finite but meaningless.

    Attributes:
        config: architecture of the model.
    """

    config: DecoderConfig

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters: weights from N(0, init_std²), biases 0 and norms with scale 1.

        The last projection of each residual branch is divided by √(2 num_layers).

        Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section
        2.3.
        """
        # Under jit it is one program; otherwise a new process compiles every draw separately.
        return jax.jit(self._fresh)(key)

    def _fresh(self, key: jax.Array) -> Params:
        c = self.config
        trunk_key, layers_key, head_key = jax.random.split(key, 3)
        one = jnp.zeros((1, 1), jnp.int32)
        keys = (one > -1, one, jnp.arange(1))
        params = dict(Trunk(c, depth=0).init(trunk_key, one, one, keys)["params"])
        x = jnp.zeros((1, 1, c.hidden_size), jnp.dtype(c.dtype))
        rotation = rotations(c, one) if c.rotary else None

        def layer(key: jax.Array) -> Params:
            return Block(c).init(key, x, rotation, one[None] > -1, past=None, column=0)["params"]

        # One draw covers an array of all layers: a draw for each array of each layer takes long to
        # compile on a GPU. Without the barrier XLA splits the draws again.
        layers = jax.vmap(layer)(jax.random.split(layers_key, c.num_layers))
        layers = jax.lax.optimization_barrier(layers)
        for i in range(c.num_layers):
            params[f"layer_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
        if not c.tied:
            kernel = c.init_std * jax.random.normal(head_key, (c.hidden_size, c.vocab_size))
            params["head"] = {"kernel": kernel}
        return params

    def apply(self, params: Params, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits of the token that follows each column.

        Args:
            params: parameters of the model, as from `init`.
            tokens: [B, L] int, token ids.
            mask: [B, L] mask, nonzero for tokens and 0 for padding; None if there is no padding.

        Returns:
            [B, L, V] float32 logits.
        """
        return self.logits(params, self.hidden(params, tokens, mask))

    def hidden(
        self,
        params: Params,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        last: int | None = None,
    ) -> jax.Array:
        """[B, L, D] hidden states after the final norm, in the config's dtype; see `apply`.

        Args:
            params: parameters of the model, as from `init`.
            tokens: [B, L] int, token ids.
            mask: [B, L] mask, nonzero for tokens and 0 for padding; None if there is no padding.
            last: number of last columns whose hidden states are returned, [B, last, D]; the last
                layer does not compute the others. None returns all of them. Static.
        """
        return self._forward(params, tokens, mask, last)[0]

    def head(self, params: Params) -> jax.Array:
        """The matrix [D, V] that maps hidden states to logits."""
        return params["embedding"].T if self.config.tied else params["head"]["kernel"]

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Logits [..., V] float32 of hidden states [..., D]."""
        return head_logits(hidden, self.head(params), self.config.logit_softcap)

    def distribution(
        self,
        params: Params,
        hidden: jax.Array,
        temperature: jax.Array | float = 1.0,
        *,
        valid_vocab: int | None = None,
        chunk: int = CHUNK,
    ) -> TokenDistribution:
        """The distribution of the token that follows each hidden state.

        Args:
            params: parameters of the model, as from `init`.
            hidden: [..., D] hidden states after the final norm.
            temperature: temperature τ, which divides the logits.
            valid_vocab: number of ids in the tokenizer; larger ids have probability 0. None allows
                all ids.
            chunk: maximum number of logits in a block.
        """
        return TokenDistribution(
            hidden,
            self.head(params),
            temperature,
            chunk=chunk,
            valid_vocab=valid_vocab,
            softcap=self.config.logit_softcap,
        )

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
        """Read prompts into a new cache of `length` columns.

        Args:
            params: parameters of the model, as from `init`.
            tokens: [B, P] int, token ids, P <= length.
            mask: [B, P] mask, nonzero for tokens; None if there is no padding.
            length: number of columns of the cache, including those of the prompt.

        Returns:
            [B, P, D] hidden states after the final norm, and the cache.

        Raises:
            ValueError: the prompts do not fit into the cache, or the cache exceeds the context.
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
        """Read one more token of each row.

        Args:
            params: parameters of the model, as from `init`.
            cache: cache of the tokens read so far, with at least one empty column.
            token: [B] int, token ids.

        Returns:
            [B, D] hidden states after the final norm, and the cache that includes the tokens.
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

    def values(
        self,
        params: Params,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        last: int | None = None,
    ) -> jax.Array:
        """Output of the score head at each column, v_t = w · h_t.

        The arguments are those of `hidden`, with parameters that include a score head.

        Returns:
            [B, L] float32 values, or those of the last columns.
        """
        hidden = self.hidden(params, tokens, mask, last).astype(jnp.float32)
        return (hidden @ params["score"]["kernel"].astype(jnp.float32))[..., 0]

    def score(self, params: Params, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Output of the score head at the last token of each row that is not padding.

        Masked tokens are padding, and so are tokens with the id `config.pad_id`, as in
        transformers: if the end-of-sequence token is also the padding token, the score is the one
        of the token before it. A row of nothing but padding has the score of its first column.

        The arguments are those of `values`.

        Returns:
            [B] float32 scores.
        """
        values = self.values(params, tokens, mask)
        text = jnp.ones(tokens.shape, bool) if mask is None else mask > 0
        if self.config.pad_id is not None:
            text &= tokens != self.config.pad_id
        last = jnp.argmax(text * jnp.arange(tokens.shape[1]), axis=1)
        return jnp.take_along_axis(values, last[:, None], axis=1)[:, 0]

    def with_score(self, params: Params, key: jax.Array | None = None) -> Params:
        """Parameters with the same trunk and a new score head in place of the head.

        Args:
            params: parameters of the model, with or without a score head.
            key: PRNG key for weights from N(0, 1 / (D + 1)); None makes the weights 0, so that a
                critic starts with the value 0 everywhere.

        Returns:
            The parameters, which share all arrays of the trunk with `params`.

        Source: Stiennon et al. 2020, Learning to summarize from human feedback (the scale).
        """
        size = self.config.hidden_size
        kernel = jnp.zeros((size, 1))
        if key is not None:
            kernel = jax.random.normal(key, (size, 1)) * (size + 1) ** -0.5
        trunk = {name: x for name, x in params.items() if name not in ("head", "score")}
        return trunk | {"score": {"kernel": kernel}}

    def _forward(
        self, params: Params, tokens: jax.Array, mask: jax.Array | None, last: int | None = None
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        self._check_length(tokens.shape[1])
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask > 0
        positions = positions_of(mask)
        keys = (mask, positions, jnp.arange(tokens.shape[1]))
        return self._trunk(params, tokens, positions, keys, last=last)

    def _trunk(
        self, params: Params, *args: Any, last: int | None = None, **cached: Any
    ) -> tuple[jax.Array, tuple[KeyValue, ...]]:
        # linen annotates the result of `apply` for any module; these are the types of this one.
        trunk = Trunk(self.config, last=last)
        return cast(Any, trunk.apply({"params": params}, *args, **cached))

    def _check_length(self, length: int) -> None:
        c = self.config
        if length <= c.context:
            return
        if not c.rotary:
            raise ValueError(
                f"{length} tokens, but the model has positions for {c.context}: shorten the "
                "prompts or the responses"
            )
        if c.context < c.max_positions:
            raise ValueError(
                f"{length} tokens, but longrope is supported up to the original context of "
                f"{c.context}: shorten the prompts or the responses"
            )
