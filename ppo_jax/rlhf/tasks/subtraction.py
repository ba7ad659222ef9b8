"""Subtraction of two integers: `46-12=` is answered by `34`, or by `43` in reverse."""

import dataclasses

import jax
import jax.numpy as jnp

from ppo_jax.config.options import check_record, option
from ppo_jax.rlhf.tasks import integers, split, tokens
from ppo_jax.rlhf.tasks.integers import MAX_DIGITS


@dataclasses.dataclass(frozen=True)
class Subtraction:
    """The difference of two integers of a given number of digits, which are drawn uniformly.

    The worked answer has as many digits as the operands, with leading zeros, after a minus sign if
    it is negative; an answer is right if its value is.

    Source: Lee et al. 2023, Teaching Arithmetic to Small Transformers, section 3 (the formats
    "plain" and "reverse").
    """

    digits: int = option(2, "number of digits of each operand", low=1, high=MAX_DIGITS - 1)
    reverse: bool = option(True, "write the least significant digit of the answer first")
    signed: bool = option(False, "draw the operands in any order, so that answers may be negative")

    vocabulary = "-0123456789="

    def __post_init__(self) -> None:
        """Refuse a difficulty that is out of range."""
        check_record(self)

    @property
    def prompt_length(self) -> int:
        """Number of tokens of a prompt."""
        return 2 * self.digits + 3

    @property
    def response_length(self) -> int:
        """Maximum number of tokens of a response."""
        return self.digits + 1 + self.signed

    def problems(self, key: jax.Array, n: int, held_out: bool | jax.Array) -> jax.Array:
        """[n, P] prompts; a - b and b - a are in the same part."""
        return split.problems(
            key, n, held_out, draw=self._draw, identity=lambda p: jnp.sort(self._operands(p))
        )

    def solve(self, prompt: jax.Array) -> jax.Array:
        """[R] the difference with all its digits."""
        return integers.answer(
            self._difference(prompt),
            self.digits,
            self.response_length,
            vocabulary=self.vocabulary,
            reverse=self.reverse,
        )

    def reward(self, prompt: jax.Array, response: jax.Array) -> jax.Array:
        """[] 1 if the response is the difference, otherwise 0."""
        return integers.reward(
            response,
            self._difference(prompt),
            vocabulary=self.vocabulary,
            signed=self.signed,
            reverse=self.reverse,
        )

    def python_reward(self, prompt: str, response: str) -> float:
        """The reward of texts."""
        n = f"([0-9]{{{self.digits}}})"
        a, b = tokens.fields(f"{n}-{n}=", prompt, self)
        return integers.reward_text(
            response,
            int(a) - int(b),
            self.response_length,
            signed=self.signed,
            reverse=self.reverse,
        )

    def _draw(self, key: jax.Array) -> jax.Array:
        pair = jax.random.randint(key, (2,), 0, 10**self.digits)
        pair = pair if self.signed else jnp.sort(pair, descending=True)
        a, b = integers.digits(pair, self.digits) + tokens.id_of(self.vocabulary, "0")
        return tokens.join(self.vocabulary, a, "-", b, "=")

    def _operands(self, prompt: jax.Array) -> jax.Array:
        """[2] the two operands."""
        return integers.operands(prompt, self.digits, self.vocabulary)

    def _difference(self, prompt: jax.Array) -> jax.Array:
        a, b = self._operands(prompt)
        return a - b
