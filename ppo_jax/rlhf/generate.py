"""Sampling from a decoder with a key-value cache, as one program for jit.

The masks come from the sampler and are never derived from token ids: the pad id may be sampled, may
equal the end-of-text id, or may be an ordinary token.
"""

import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax.distributions import Categorical
from ppo_jax.rlhf import sampling
from ppo_jax.rlhf.decoder import Cache, Decoder
from ppo_jax.rlhf.token_distribution import mask_vocabulary
from ppo_jax.types import Params


class Generation(NamedTuple):
    """The tokens sampled after each prompt.

    Attributes:
        tokens: [B, N] int32, sampled token ids, followed by pad_id after the end of text.
        mask: [B, N] bool, True for sampled tokens, including the end of text.
        log_prob: [B, N] float32, log-probabilities of the sampled tokens, followed by 0.
    """

    tokens: jax.Array
    mask: jax.Array
    log_prob: jax.Array


class _State(NamedTuple):
    """The state of the sampling loop.

    Attributes:
        step: [] number of tokens sampled so far in each row.
        token: [B] last sampled token ids.
        done: [B] bool, whether the row has ended.
        cache: cache of all tokens before the last sampled one.
        generation: [B, N] tokens sampled so far.
    """

    step: jax.Array
    token: jax.Array
    done: jax.Array
    cache: Cache
    generation: Generation


def generate(
    key: jax.Array,
    params: Params,
    prompt: jax.Array,
    prompt_mask: jax.Array | None,
    *,
    decoder: Decoder,
    max_new_tokens: int,
    temperature: jax.Array | float = 1.0,
    eos_id: int | tuple[int, ...] | jax.Array | None,
    pad_id: jax.Array | int = 0,
    top_k: int | None = None,
    top_p: jax.Array | float | None = None,
    valid_vocab: int | None = None,
    truncated: bool = False,
    samples: int = 1,
) -> Generation:
    """Continue every prompt until its end of text, or for max_new_tokens tokens.

    Each token is drawn from π(v) ∝ exp(z_v / τ), by `sampling.sample`; the loop stops once all rows
    have ended.

    Args:
        key: PRNG key, or [B] keys, one for each row: the tokens of a row then do not depend on the
            other rows of the batch.
        params: parameters of the decoder.
        prompt: [B / samples, P] int, token ids of the prompts, padded on either side.
        prompt_mask: [B / samples, P] mask, nonzero for tokens; None if there is no padding.
        decoder: the model. Static.
        max_new_tokens: N, the maximum number of new tokens. Static.
        temperature: [] τ; 0 takes the most likely token, with log-probabilities of τ = 1.
        eos_id: id or ids of the tokens that end a text; None samples all N tokens.
        pad_id: id that fills `tokens` after the end of text.
        top_k: number of most likely tokens that are drawn from; None for all V tokens. Static.
        top_p: probability p, 0 < p <= 1; tokens are drawn from the smallest set of the most likely
            ones whose probabilities sum to at least p. None for all V tokens.
        valid_vocab: number of ids in the tokenizer; larger ids have probability 0. None allows all
            ids. Static.
        truncated: whether log-probabilities are those of the distribution that top_k and top_p
            leave, instead of the whole distribution. Static.
        samples: number of continuations of each prompt, which are consecutive among the B rows. The
            prompt is read once for all of them. Static.

    Returns:
        Tokens, masks and log-probabilities [B, N].

    Raises:
        ValueError: the prompt and N tokens exceed the model's context, or N, top_k or top_p is out
            of range.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration (top-p).
    """
    _check(decoder, prompt, max_new_tokens, top_k=top_k, top_p=top_p)
    stops = jnp.array((), jnp.int32) if eos_id is None else jnp.atleast_1d(jnp.asarray(eos_id))
    batch, length = prompt.shape[0] * samples, prompt.shape[1]
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # a key of jax.random.PRNGKey
        key = jax.random.wrap_key_data(key)

    def draw(step: jax.Array, hidden: jax.Array, done: jax.Array) -> tuple[jax.Array, ...]:
        logits = mask_vocabulary(decoder.logits(params, hidden), valid_vocab)
        noise = (
            jax.vmap(jax.random.fold_in, (0, None))(key, step)
            if key.ndim
            else (jax.random.fold_in(key, step))
        )
        token, whole, left = _sample(noise, logits, temperature, top_k=top_k, top_p=top_p)
        log_prob = left if truncated else whole
        token = jnp.where(done, pad_id, token)
        ended = done | jnp.any(token[:, None] == stops, axis=1)
        return token, ended, jnp.where(done, 0.0, log_prob)

    def body(state: _State) -> _State:
        hidden, cache = decoder.step(params, state.cache, state.token)
        token, done, log_prob = draw(state.step, hidden, state.done)
        new = Generation(token, ~state.done, log_prob)
        generation = _write(state.generation, new, state.step)
        return _State(state.step + 1, token, done, cache, generation)

    hidden, cache = decoder.prefill(params, prompt, prompt_mask, length + max_new_tokens - 1)
    last = hidden[:, -1] if prompt_mask is None else _last(hidden, prompt_mask)
    last, cache = jax.tree.map(
        lambda x: jnp.repeat(x, samples, axis=0) if x.ndim else x, (last, cache)
    )
    running = jnp.zeros((batch,), bool)
    token, done, log_prob = draw(jnp.int32(0), last, running)
    shape = (batch, max_new_tokens)
    empty = Generation(
        jnp.full(shape, pad_id, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32)
    )
    generation = _write(empty, Generation(token, ~running, log_prob), jnp.int32(0))
    state = _State(jnp.int32(1), token, done, cache, generation)
    going = lambda s: (s.step < max_new_tokens) & ~jnp.all(s.done)
    return jax.lax.while_loop(going, body, state).generation


def _sample(
    key: jax.Array,
    logits: jax.Array,
    temperature: jax.Array | float,
    *,
    top_k: int | None,
    top_p: jax.Array | float | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, and their log-probabilities in the whole and in the truncated distribution."""
    greedy = jnp.asarray(temperature) <= 0
    full = Categorical(logits / jnp.where(greedy, 1.0, temperature))
    dist = full
    if top_k is not None:
        dist = dist.masked(within_top_k(dist.logits, top_k))
    if top_p is not None:
        dist = dist.masked(within_top_p(dist.logits, top_p))
    token = jnp.where(greedy, full.mode(), _drawn(dist.logits, key))
    return token, full.log_prob(token), dist.log_prob(token)


def _drawn(logits: jax.Array, key: jax.Array) -> jax.Array:
    """[B] tokens, drawn with one key for all rows or with one for each."""
    draw = jax.vmap(sampling.sample) if key.ndim else sampling.sample
    return draw(key, logits)


def within_top_k(logits: jax.Array, k: int) -> jax.Array:
    """[..., V] bool, True for the k largest logits and for any that equal the k-th largest."""
    kth = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return logits >= kth


def within_top_p(logits: jax.Array, p: jax.Array | float) -> jax.Array:
    """[..., V] bool, True for the smallest set of most likely tokens with a total of at least p.

    A token is kept if it and all less likely tokens have more than 1 − p. These sums start with the
    rarest token: sums that start with the most likely one are rounded to 1 before the rarest.
    """
    ordered = jnp.sort(logits, axis=-1)
    mass = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
    kept = (mass > (1.0 - p) * mass[..., -1:]).at[..., -1].set(True)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return logits >= least


def _last(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, D] hidden states at the last unmasked token of each row."""
    last = hidden.shape[1] - 1 - jnp.argmax((mask > 0)[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def _write(generation: Generation, new: Generation, step: jax.Array) -> Generation:
    here = (jnp.int32(0), step)
    put = lambda old, x: jax.lax.dynamic_update_slice(old, x[:, None], here)
    return jax.tree.map(put, generation, new)


def _check(
    decoder: Decoder,
    prompt: jax.Array,
    max_new_tokens: int,
    *,
    top_k: int | None,
    top_p: jax.Array | float | None,
) -> None:
    limit = decoder.config.context
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if prompt.shape[1] + max_new_tokens > limit:
        raise ValueError(
            f"prompts of {prompt.shape[1]} tokens and {max_new_tokens} new ones exceed the model's "
            f"context of {limit}: shorten the prompts or lower max_new_tokens"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    if isinstance(top_p, int | float) and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be in (0, 1]")


class _Callable(types.ModuleType):
    """This module, callable as the function `ppo_jax.rlhf.generate`."""

    def __call__(self, *arguments: Any, **options: Any) -> Generation:
        """Call `generate`."""
        return generate(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
