"""Distributions over the next token that never hold all their logits at once.

The largest array in training a language model are its logits [B, L, V] in float32: 4.1 GB for 8
texts of 1,000 tokens and a vocabulary of 128,000. Here hidden states [..., D] and the head [D, V]
stand for them; blocks of positions are turned into logits, reduced, and forgotten, and the backward
pass computes them again.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.distributions import Categorical, log_prob_and_entropy

# 64 MiB of float32: some 330 rows of a GPT-2 vocabulary, enough to keep the matrix product busy.
CHUNK = 1 << 24


def head_logits(hidden: jax.Array, head: jax.Array) -> jax.Array:
    """z = h W, products in the dtype of the hidden states, sums and result in float32.

    Args:
        hidden: [..., D].
        head: [D, V].

    Returns:
        [..., V] float32.
    """
    return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def in_blocks(function: Callable, arrays: Any, lead: int, rows_per_block: int) -> Any:
    """function(arrays), computed in blocks along the last of the leading axes.

    Only that axis is cut, so that a batch spread over devices stays so. The backward pass of
    each block computes its forward pass again.

    Args:
        function: of arrays like `arrays`, shorter along axis `lead` − 1; so its results.
        arrays: pytree of arrays with `lead` leading axes in common.
        lead: how many there are.
        rows_per_block: leading elements in a block, at least; rounded down to whole steps.
    """
    shape = jax.tree.leaves(arrays)[0].shape[:lead]
    if lead == 0 or math.prod(shape) <= rows_per_block:
        return function(arrays)
    length = shape[-1]
    steps = min(length, max(1, rows_per_block // max(1, math.prod(shape[:-1]))))
    blocks = -(-length // steps)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, lead - 1, 0)
        x = jnp.pad(x, [(0, blocks * steps - length)] + [(0, 0)] * (x.ndim - 1))
        return jnp.moveaxis(x.reshape(blocks, steps, *x.shape[1:]), 1, lead)

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, lead, 1)
        return jnp.moveaxis(x.reshape(blocks * steps, *x.shape[2:])[:length], 0, lead - 1)

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(function), jax.tree.map(cut, arrays)))


@struct.dataclass
class TokenDistribution:
    """π(v) = exp(z_v / τ) / Σ_w exp(z_w / τ) with z = h W, evaluated block by block.

    Attributes:
        hidden: [..., D] h, after the final norm.
        head: [D, V] W.
        temperature: [] τ > 0.
        chunk: logits held at a time; a block has at least one step of the last leading axis.
        valid_vocab: tokens from here on are impossible; None admits all.
    """

    hidden: jax.Array
    head: jax.Array
    temperature: jax.Array | float = 1.0
    chunk: int = struct.field(pytree_node=False, default=CHUNK)
    valid_vocab: int | None = struct.field(pytree_node=False, default=None)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """[...] log π(action) = z_action / τ − log Σ_v exp(z_v / τ), nats."""
        return self._map(lambda d, a: d.log_prob(a), action)

    def entropy(self) -> jax.Array:
        """[...] H[π] = −Σ_v π(v) log π(v), nats."""
        return self._map(lambda d: d.entropy())

    def log_prob_and_entropy(self, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[...] each, from the same logits: by themselves each would make all blocks of its own."""
        return self._map(lambda d, a: (d.log_prob(a), d.entropy()), action)

    def mode(self) -> jax.Array:
        """[...] the most likely token."""
        return self._map(lambda d: d.mode())

    def sample(self, key: jax.Array) -> jax.Array:
        """[...] one token each, the same for every `chunk`."""
        noise = jax.random.uniform(key, self.hidden.shape[:-1])
        return self._map(lambda d, u: d.sample_from(u), noise)

    def kl(self, other: "TokenDistribution") -> jax.Array:
        """[...] KL(self ‖ other), nats."""
        return self._map(lambda d, h: d.kl(other.dense(h)), other.hidden)

    def dense(self, hidden: jax.Array) -> Categorical:
        """The distributions at hidden states [..., D] with all their logits."""
        logits = head_logits(hidden, self.head) / self.temperature
        return Categorical(mask_vocabulary(logits, self.valid_vocab))

    def _map(self, function: Callable, *arrays: jax.Array) -> Any:
        lead = self.hidden.ndim - 1
        rows = max(1, self.chunk // self.head.shape[-1])
        call = functools.partial(_apply, function, self.dense)
        return in_blocks(call, (self.hidden, *arrays), lead, rows)


log_prob_and_entropy.register(TokenDistribution, TokenDistribution.log_prob_and_entropy)


def _apply(function: Callable, dense: Callable, arrays: tuple) -> jax.Array:
    hidden, *rest = arrays
    return function(dense(hidden), *rest)


def mask_vocabulary(logits: jax.Array, valid_vocab: int | None) -> jax.Array:
    """Logits [..., V] under which tokens from `valid_vocab` on are impossible.

    Embeddings are often padded to a round number of rows, which no tokenizer ever produces.
    """
    if valid_vocab is None or valid_vocab >= logits.shape[-1]:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < valid_vocab, logits, -jnp.inf)
