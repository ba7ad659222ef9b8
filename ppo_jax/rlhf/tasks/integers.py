"""Integers as tokens: written with a fixed number of digits, and read from a response."""

import re

import jax
import jax.numpy as jnp
import numpy as np

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


def read(
    ids: jax.Array, end: jax.Array, *, zero: int, minus: int | None = None, reverse: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Read one integer from the tokens of a response.

    Args:
        ids: [R] token ids, R <= 11 with a sign and R <= 10 without.
        end: [] number of tokens of the text, which begins at the first token.
        zero: id of the character 0, which those of the other digits follow.
        minus: id of the minus sign, which may be the first character; None allows no sign.
        reverse: whether the least significant digit is the first one. Static.

    Returns:
        (whether the text is an integer, its value). Leading zeros are allowed. The text must end
        before the row does, because its <eos> belongs to the response.
    """
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
