"""Tokens of the reasoning tasks: special tokens and one token for each character.

The ids are those of `tokenizer.CharTokenizer` for the same vocabulary, so that a model that was
trained on a task works in all stages of language models.
"""

import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<bos>", "<eos>")


def size(vocabulary: str) -> int:
    """Number of token ids: the special tokens and the characters."""
    return len(SPECIAL) + len(vocabulary)


def id_of(vocabulary: str, character: str) -> int:
    """The token id of a character."""
    return len(SPECIAL) + vocabulary.index(character)


def encode(vocabulary: str, text: str) -> list[int]:
    """The token ids of a text, without special tokens.

    Raises:
        ValueError: the text has a character that is not in the vocabulary.
    """
    unknown = sorted(set(text) - set(vocabulary))
    if unknown:
        raise ValueError(f"{text!r} has {unknown[0]!r}, which is not among {vocabulary!r}")
    return [id_of(vocabulary, character) for character in text]


def decode(vocabulary: str, ids: Iterable[int]) -> str:
    """The text of token ids up to the first <eos>, without <pad> and <bos> at the beginning.

    A special token between characters is written as its name, which no task accepts.
    """
    names = [*SPECIAL, *vocabulary]
    row = [int(i) for i in ids]
    row = row[: row.index(EOS)] if EOS in row else row
    first = next((i for i, token in enumerate(row) if token not in (PAD, BOS)), len(row))
    return "".join(names[token] for token in row[first:])


def is_malformed(vocabulary: str, text: str, ids: Iterable[int]) -> bool:
    """Whether a response lacks <eos> or has another special token before it.

    A tokenizer leaves special tokens out of the text, so that the text alone does not show them.

    Args:
        vocabulary: characters of the task.
        text: text of the response, without special tokens.
        ids: token ids of the response. False is returned if they are those of another tokenizer,
            whose end of text is unknown.
    """
    row = [int(i) for i in ids]
    names = [""] * len(SPECIAL) + [*vocabulary]
    if not all(0 <= i < len(names) for i in row) or "".join(names[i] for i in row) != text:
        return False
    return EOS not in row or any(i < len(SPECIAL) for i in row[: row.index(EOS)])


def join(vocabulary: str, *parts: str | jax.Array) -> jax.Array:
    """A prompt as token ids: <bos> and the parts in their order.

    Args:
        vocabulary: characters of the task.
        *parts: texts, and arrays [K_i] of token ids.

    Returns:
        [P] int32 token ids.
    """
    rows = [encode(vocabulary, part) if isinstance(part, str) else part for part in parts]
    return jnp.concatenate([jnp.asarray(row, jnp.int32) for row in ([BOS], *rows)])


def response_row(vocabulary: str, text: str, length: int) -> np.ndarray:
    """A response as `length` token ids: the characters, <eos> and padding; int32."""
    row = [*encode(vocabulary, text), EOS][:length]
    return np.asarray(row + [PAD] * (length - len(row)), np.int32)


def end(response: jax.Array) -> jax.Array:
    """Number of tokens before the first <eos> of a response [R]; R if it has none."""
    stops = response == EOS
    return jnp.where(jnp.any(stops), jnp.argmax(stops), response.shape[0])


def finish(ids: jax.Array, keep: jax.Array, length: int) -> jax.Array:
    """A response of the kept ids in their order, followed by <eos> and padding.

    Args:
        ids: [K] token ids.
        keep: [K] bool, True for the ids of the response.
        length: R, number of tokens of the row. Static.

    Returns:
        [R] int32 token ids.
    """
    place = jnp.where(keep, jnp.cumsum(keep) - 1, length)  # outside the row: dropped
    row = jnp.full((length,), PAD, jnp.int32).at[jnp.sum(keep)].set(EOS, mode="drop")
    return row.at[place].set(ids.astype(jnp.int32), mode="drop")


def fields(pattern: str, prompt: str, task: Any) -> tuple[str, ...]:
    """The groups of a pattern in the text of a prompt.

    Raises:
        ValueError: the text is not a prompt of the task.
    """
    found = re.fullmatch(pattern, prompt)
    if found is None:
        raise ValueError(f"{prompt!r} is not a prompt of {task}")
    return found.groups()
