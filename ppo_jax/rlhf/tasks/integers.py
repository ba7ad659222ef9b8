"""Integers as tokens: written with a fixed number of digits, and read from a response."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf.tasks import tokens

# The largest power of ten below 2³¹ and those before it.
POWERS = np.asarray([10**i for i in range(10)], np.int32)
MAX_DIGITS = 9  # the integers of that many digits are all below 2³¹


def digits(value: jax.Array, width: int, reverse: bool = False) -> jax.Array:
    """The digits of an integer, with leading zeros.

    Args:
        value: [...] integers, 0 <= value < 10^width.
        width: number of digits. Static.
        reverse: whether the least significant digit is the first one. Static.

    Returns:
        [..., width] digits from 0 to 9.
    """
    powers = POWERS[:width] if reverse else POWERS[:width][::-1]
    return value[..., None] // powers % 10


def value(digits: jax.Array) -> jax.Array:
    """The inverse of `digits` with the most significant digit first: [..., width] -> [...]."""
    return jnp.sum(digits * POWERS[: digits.shape[-1]][::-1], axis=-1)


def operands(prompt: jax.Array, width: int, vocabulary: str) -> jax.Array:
    """The two integers of a prompt that consists of <bos>, a, an operator, b and an equals sign.

    Args:
        prompt: [2 width + 3] token ids.
        width: number of digits of each integer. Static.
        vocabulary: characters of the task. Static.

    Returns:
        [2] the integers.
    """
    figures = jnp.stack([prompt[1 : width + 1], prompt[width + 2 : -1]])
    return value(figures - tokens.id_of(vocabulary, "0"))


def answer(
    value: jax.Array, width: int, length: int, *, vocabulary: str, reverse: bool = False
) -> jax.Array:
    """A response that consists of one integer with leading zeros, and a minus sign if needed.

    Args:
        value: [] integer, |value| < 10^width.
        width: number of digits. Static.
        length: R, number of tokens of the response. Static.
        vocabulary: characters of the task, with - if an answer may be negative. Static.
        reverse: whether the least significant digit is the first one. Static.

    Returns:
        [R] int32 token ids.
    """
    figures = digits(jnp.abs(value), width, reverse) + tokens.id_of(vocabulary, "0")
    if "-" not in vocabulary:
        return tokens.finish(figures, jnp.ones((width,), bool), length)
    minus = jnp.full((1,), tokens.id_of(vocabulary, "-"))
    keep = jnp.ones((width + 1,), bool).at[0].set(value < 0)
    return tokens.finish(jnp.concatenate([minus, figures]), keep, length)


def reward(
    response: jax.Array,
    value: jax.Array,
    *,
    vocabulary: str,
    signed: bool = False,
    reverse: bool = False,
) -> jax.Array:
    """1 if a response is the integer `value`, otherwise 0.

    Args:
        response: [R] token ids.
        value: [] right answer.
        vocabulary: characters of the task. Static.
        signed: whether an answer may begin with a minus sign. Static.
        reverse: whether the least significant digit is the first one. Static.

    Returns:
        [] float32 reward.
    """
    valid, found = read(
        response,
        zero=tokens.id_of(vocabulary, "0"),
        minus=tokens.id_of(vocabulary, "-") if signed else None,
        reverse=reverse,
    )
    return (valid & (found == value)).astype(jnp.float32)


def read(
    ids: jax.Array, *, zero: int, minus: int | None = None, reverse: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Read one integer from the tokens of a response.

    Args:
        ids: [R] token ids, R <= 11 with a sign and R <= 10 without.
        zero: id of the character 0, which those of the other digits follow.
        minus: id of the minus sign, which may be the first character; None allows no sign.
        reverse: whether the least significant digit is the first one. Static.

    Returns:
        (whether the text before <eos> is an integer, its value). Leading zeros are allowed. Without
        <eos>, the response is not an integer, because it does not end.
    """
    end = tokens.end(ids)
    place = jnp.arange(ids.shape[0])
    signed = jnp.bool_(False) if minus is None else ids[0] == minus
    inside = (place >= signed) & (place < end)
    digit = ids - zero
    valid = jnp.all(~inside | ((digit >= 0) & (digit <= 9)))
    exponent = place - signed if reverse else end - 1 - place
    size = jnp.sum(jnp.where(inside, digit * jnp.asarray(POWERS)[exponent], 0))
    ended = (end > signed) & (end < ids.shape[0])
    return valid & ended, jnp.where(signed, -size, size)


def read_text(text: str, *, signed: bool = False, reverse: bool = False) -> int | None:
    """The integer that a text consists of, in plain Python; None if it is not an integer."""
    if not re.fullmatch("-?[0-9]+" if signed else "[0-9]+", text):
        return None
    sign, figures = (-1, text[1:]) if text[0] == "-" else (1, text)
    return sign * int(figures[::-1] if reverse else figures)


def reward_text(
    response: str, value: int, length: int, *, signed: bool = False, reverse: bool = False
) -> float:
    """`reward` of a text in plain Python; with its <eos>, it may have `length` tokens."""
    if len(response) >= length:
        return 0.0
    return float(read_text(response, signed=signed, reverse=reverse) == value)
