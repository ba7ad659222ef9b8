"""Responses of a model to any number of prompts, sampled in batches in the order of the prompts."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf.data import Tokens
from ppo_jax.rlhf.decoder import Decoder
from ppo_jax.rlhf.generate import Generation, generate
from ppo_jax.rlhf.scoring import continuation
from ppo_jax.types import Params

# Prompts are padded to a multiple of this number of tokens, so that few programs are compiled.
WIDTH = 32


class Sampling(NamedTuple):
    """How responses are sampled.

    Attributes:
        max_new_tokens: N, number of tokens of the longest response.
        temperature: temperature that divides the logits; 0 for the most likely token.
        top_k, top_p: limits of the tokens that are drawn from, as for `generate`.
        repeat: number R of responses to each prompt.
        batch_size: B, number of responses that are sampled at a time.
        seed: seed of the sampling.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repeat: int = 1
    batch_size: int = 64
    seed: int = 0


class Batch(NamedTuple):
    """A batch of responses.

    Attributes:
        rows: [B] index of the prompt of each response.
        prompts: (token ids [B, P], padded on the left; their mask [B, P]).
        written: the responses [B, N].
        new: number of responses, counted from the first; the others only fill up the last batch.
    """

    rows: np.ndarray
    prompts: Tokens
    written: Generation
    new: int


def batches(
    decoder: Decoder,
    params: Params,
    prompts: Tokens,
    sampling: Sampling,
    *,
    eos_id: int | tuple[int, ...] | None,
    valid_vocab: int | None,
    first: int = 0,
) -> Iterator[Batch]:
    """Sample R responses to each prompt, those to the first prompt first.

    The random numbers of a batch depend on the seed and on the number of the batch, so that an
    interrupted command continues with the same responses.

    Args:
        decoder: architecture of the model.
        params: parameters of the model.
        prompts: N prompts, padded on the left.
        sampling: settings of the sampling.
        eos_id: id or ids of the tokens that end a response; None if no token does.
        valid_vocab: number of ids in the tokenizer; None allows all ids.
        first: number of batches to leave out, because they were written before.
    """
    draw = jax.jit(
        functools.partial(
            generate,
            decoder=decoder,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            eos_id=eos_id,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            valid_vocab=valid_vocab,
        )
    )
    total = len(prompts.tokens) * sampling.repeat
    size = min(sampling.batch_size, total)
    key = jax.random.key(sampling.seed)
    for number in range(first, -(-total // size)):
        places = np.arange(number * size, (number + 1) * size)
        rows = np.minimum(places, total - 1) // sampling.repeat
        chosen = _narrow(prompts, rows)
        arrays = map(jnp.asarray, chosen)
        written = jax.device_get(draw(jax.random.fold_in(key, number), params, *arrays))
        yield Batch(rows, chosen, written, min(size, total - number * size))


def _narrow(prompts: Tokens, rows: np.ndarray) -> Tokens:
    """Some of the prompts, without the columns in which all of them are padded."""
    tokens, mask = prompts.tokens[rows], prompts.mask[rows]
    longest = int(mask.sum(axis=1).max())
    width = min(-(-longest // WIDTH) * WIDTH, tokens.shape[1])
    return Tokens(tokens[:, -width:], mask[:, -width:])


def texts(batch: Batch, tokenizer: Any) -> list[str]:
    """The new responses of a batch as texts."""
    found = []
    for k in range(batch.new):
        prompt = batch.prompts.tokens[k][batch.prompts.mask[k] > 0]
        response = batch.written.tokens[k][batch.written.mask[k] > 0]
        found.append(continuation(tokenizer, prompt.tolist(), response.tolist()))
    return found


def ended(batch: Batch, eos_id: int | tuple[int, ...] | None) -> np.ndarray:
    """[B] bool, whether the last token of each response ends it; True if no token does."""
    if eos_id is None:
        return np.ones(len(batch.rows), bool)
    last = batch.written.mask.sum(axis=1).astype(int) - 1
    return np.isin(batch.written.tokens[np.arange(len(last)), last], np.atleast_1d(eos_id))
