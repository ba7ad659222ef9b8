"""Addition of two integers: `12+34=` is answered by `046`, or by `640` in reverse."""

import dataclasses
import re

import jax
import jax.numpy as jnp

from ppo_jax.config.options import check_record, option
from ppo_jax.rlhf.tasks import integers, split, tokens
from ppo_jax.rlhf.tasks.integers import MAX_DIGITS


@dataclasses.dataclass(frozen=True)
class Addition:
    """The sum of two integers of a given number of digits, which are drawn uniformly.

    The worked answer has one digit more than the summands, with leading zeros; an answer is right
    if its value is. With the least significant digit first, each digit depends on the digits of
    one place and a carry only.

    Source: Lee et al. 2023, Teaching Arithmetic to Small Transformers, section 3 (the formats
    "plain" and "reverse").
    """

    digits: int = option(2, "number of digits of each summand", low=1, high=MAX_DIGITS - 1)
    reverse: bool = option(True, "write the least significant digit of the answer first")

    vocabulary = "+0123456789="

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
        return self.digits + 2

    def problems(self, key: jax.Array, n: int, held_out: bool | jax.Array) -> jax.Array:
        """[n, P] prompts; a + b and b + a are in the same part."""
        return split.problems(
            key, n, held_out, draw=self._draw, identity=lambda p: jnp.sort(self._summands(p))
        )

    def solve(self, prompt: jax.Array) -> jax.Array:
        """[R] the sum with all its digits."""
        figures = integers.digits(self._sum(prompt), self.digits + 1, self.reverse)
        keep = jnp.ones_like(figures, bool)
        return tokens.finish(figures + self._zero, keep, self.response_length)

    def reward(self, prompt: jax.Array, response: jax.Array) -> jax.Array:
        """[] 1 if the response is the sum, otherwise 0."""
        end = tokens.end(response)
        valid, found = integers.read(response, end, zero=self._zero, reverse=self.reverse)
        return (valid & (found == self._sum(prompt))).astype(jnp.float32)

    def python_reward(self, prompt: str, response: str) -> float:
        """The reward of texts."""
        summands = re.fullmatch(f"([0-9]{{{self.digits}}})\\+([0-9]{{{self.digits}}})=", prompt)
        if summands is None:
            raise ValueError(f"{prompt!r} is not a prompt of {self}")
        if len(response) >= self.response_length:
            return 0.0
        found = integers.read_text(response, reverse=self.reverse)
        return float(found == int(summands[1]) + int(summands[2]))

    @property
    def _zero(self) -> int:
        return tokens.id_of(self.vocabulary, "0")

    def _draw(self, key: jax.Array) -> jax.Array:
        figures = jax.random.randint(key, (2, self.digits), 0, 10) + self._zero
        bos, plus, equals = (
            jnp.full((1,), i, jnp.int32)
            for i in (tokens.BOS, *tokens.encode(self.vocabulary, "+="))
        )
        return jnp.concatenate([bos, figures[0], plus, figures[1], equals])

    def _summands(self, prompt: jax.Array) -> jax.Array:
        """[2] the two summands."""
        n = self.digits
        figures = jnp.stack([prompt[1 : n + 1], prompt[n + 2 : 2 * n + 2]])
        return integers.value(figures - self._zero)

    def _sum(self, prompt: jax.Array) -> jax.Array:
        return jnp.sum(self._summands(prompt))
