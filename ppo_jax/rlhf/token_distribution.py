"""Distributions over the next token that compute their logits in blocks to save memory.

The largest array in training a language model is the logits [B, L, V] in float32: 4.1 GB for 8
texts of 1,000 tokens and a vocabulary of 128,000. A distribution here stores the hidden states
[..., D] and the head [D, V] instead. The logits of a block of positions are computed, reduced and
discarded, and the backward pass computes them again.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.distributions import Categorical, log_prob_and_entropy
from ppo_jax.rlhf import sampling

# Logits per block: 128 MiB of float32, about 660 positions of a GPT-2 vocabulary. A batch that fits
# into one block is not computed again in the backward pass.
CHUNK = 1 << 25


def head_logits(hidden: jax.Array, head: jax.Array, softcap: float | None = None) -> jax.Array:
    """z = h W, with products in the dtype of the hidden states, sums and results in float32.

    Args:
        hidden: [..., D] hidden states h.
        head: [D, V] matrix W of the head.
        softcap: bound c of the logits, which become c tanh(z / c); None for no bound.

    Returns:
        [..., V] float32 logits.

    Source: Gemma Team 2024, Gemma 2, section 2 (the soft cap).
    """
    z = jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def in_blocks(function: Callable, arrays: Any, lead: int, rows_per_block: int) -> Any:
    """function(arrays), computed in blocks along the last of the leading axes.

    Only that axis is split, so that a batch that is distributed over devices stays distributed. The
    backward pass of each block computes its forward pass again.

    Args:
        function: function of arrays that are shorter than `arrays` along axis `lead` − 1, as are
            its results.
        arrays: pytree of arrays that share their first `lead` axes.
        lead: number of leading axes that all arrays share.
        rows_per_block: maximum number of elements of the leading axes in a block, but each block
            has at least one step of the split axis.

    Returns:
        The results of `function` for the whole arrays.
    """
    shape = jax.tree.leaves(arrays)[0].shape[:lead]
    if lead == 0 or math.prod(shape) <= rows_per_block:
        return function(arrays)
    length = shape[-1]
    steps = min(length, max(1, rows_per_block // max(1, math.prod(shape[:-1]))))
    blocks = -(-length // steps)
    steps = -(-length // blocks)  # blocks of about equal length need the least padding

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
        hidden: [..., D] hidden states h after the final norm.
        head: [D, V] matrix W of the head.
        temperature: [] temperature τ > 0.
        chunk: maximum number of logits in a block, but a block has at least one step of the last
            leading axis.
        valid_vocab: number of ids in the tokenizer; larger ids have probability 0. None allows all
            ids.
        softcap: bound c of the logits, z = c tanh(h W / c); None for no bound.
    """

    hidden: jax.Array
    head: jax.Array
    temperature: jax.Array | float = 1.0
    chunk: int = struct.field(pytree_node=False, default=CHUNK)
    valid_vocab: int | None = struct.field(pytree_node=False, default=None)
    softcap: float | None = struct.field(pytree_node=False, default=None)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """[...] log π(action) = z_action / τ − log Σ_v exp(z_v / τ), in nats."""
        return self._map(lambda d, a: d.log_prob(a), action)

    def entropy(self) -> jax.Array:
        """[...] H[π] = −Σ_v π(v) log π(v), in nats."""
        return self._map(lambda d: d.entropy())

    def log_prob_and_entropy(self, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """([...], [...]): both quantities from one computation of the logits."""
        return self._map(lambda d, a: (d.log_prob(a), d.entropy()), action)

    def mode(self) -> jax.Array:
        """[...] ids of the most likely tokens."""
        return self._map(lambda d: d.mode())

    def sample(self, key: jax.Array) -> jax.Array:
        """[...] ids of sampled tokens, which do not depend on `chunk`."""
        noise = sampling.noise(key, self.hidden.shape[:-1], self.head.shape[-1])
        return self._map(lambda d, g: sampling.sample_from(d.logits, g), noise)

    def kl(self, other: "TokenDistribution") -> jax.Array:
        """[...] KL(self ‖ other), in nats."""
        return self._map(lambda d, h: d.kl(other.dense(h)), other.hidden)

    def dense(self, hidden: jax.Array) -> Categorical:
        """The distributions of hidden states [..., D], with all logits in memory."""
        logits = head_logits(hidden, self.head, self.softcap) / self.temperature
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
    """Logits [..., V] with −∞ for ids from `valid_vocab` on; None changes nothing.

    Embeddings are often padded to a round number of rows; the tokenizer never produces those ids.
    """
    if valid_vocab is None or valid_vocab >= logits.shape[-1]:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < valid_vocab, logits, -jnp.inf)
