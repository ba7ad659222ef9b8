"""Sampling of tokens from large vocabularies, in which every rare token can be drawn.

The inverse of the cumulative distribution is not suitable: a float32 uniform number has 2^23
values, and cumulative sums close to 1 are rounded to multiples of 6e-8, so that many tokens of
smaller probability are never drawn. The Gumbel trick has no such limit, but takes V random numbers
for each token. Two stages, the block of the vocabulary and the token in it, take about 2 √V of
them, and are also faster than the inverse (`python -m benchmarks.sampling`).
"""

import jax
import jax.numpy as jnp


def block_size(vocab_size: int) -> int:
    """S, the number of tokens in a block: a power of two between √V and 2 √V."""
    return 1 << ((vocab_size - 1).bit_length() + 1) // 2


def noise(key: jax.Array, shape: tuple[int, ...], vocab_size: int) -> jax.Array:
    """Random numbers for one token per element of `shape`.

    Each Gumbel number is computed from 46 random bits and exceeds t with probability
    1 − exp(−e^−t), with a relative error below 1e-4 down to probabilities of 1e-9.

    Args:
        key: PRNG key.
        shape: batch shape of the distributions.
        vocab_size: V, the number of tokens.

    Returns:
        [*shape, ⌈V / S⌉ + S] Gumbel noise: one number for each block, then one for each token of
        the chosen block of S tokens.
    """
    size = block_size(vocab_size)
    return jax.random.gumbel(key, (*shape, -(-vocab_size // size) + size), mode="high")


def sample_from(logits: jax.Array, noise: jax.Array) -> jax.Array:
    """The token that is computed from Gumbel noise g, in two stages.

    b = argmax_b log Σ_{v∈b} exp(z_v) + g_b,   a = argmax_{v∈b} z_v + g_v

    P(a) = P(b) P(a | b) = π(a) with π(v) ∝ exp(z_v). A token with the logit −∞ is never drawn.

    Args:
        logits: [..., V] logits z, of which at least one is finite.
        noise: [..., ⌈V / S⌉ + S] numbers from `noise`.

    Returns:
        [...] int32 token ids.

    Source: Maddison et al. 2014, A* Sampling, section 2 (Gumbel-max).
    """
    vocab_size = logits.shape[-1]
    size = block_size(vocab_size)
    blocks = -(-vocab_size // size)
    logits = logits.astype(jnp.float32)
    weight = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, blocks * size - vocab_size)]
    weight = jnp.pad(weight, padding).reshape(*logits.shape[:-1], blocks, size)
    log_mass = jnp.log(jnp.sum(weight, axis=-1))
    block = jnp.argmax(log_mass + noise[..., :blocks], axis=-1)
    token = block[..., None] * size + jnp.arange(size)
    inside = jnp.take_along_axis(logits, jnp.minimum(token, vocab_size - 1), axis=-1)
    inside = jnp.where(token < vocab_size, inside, -jnp.inf)
    within = jnp.argmax(inside + noise[..., blocks:], axis=-1)
    return (block * size + within).astype(jnp.int32)


def sample(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draw a token from each distribution: `sample_from` with new noise.

    Args:
        key: PRNG key.
        logits: [..., V] logits z, of which at least one is finite.

    Returns:
        [...] int32 token ids.
    """
    return sample_from(logits, noise(key, logits.shape[:-1], logits.shape[-1]))
