"""Addition of two integers: `12+34=` is answered by `046`, or by `640` in reverse."""

import dataclasses

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
        return integers.answer(
            self._sum(prompt),
            self.digits + 1,
            self.response_length,
            vocabulary=self.vocabulary,
            reverse=self.reverse,
        )

    def reward(self, prompt: jax.Array, response: jax.Array) -> jax.Array:
        """[] 1 if the response is the sum, otherwise 0."""
        return integers.reward(
            response, self._sum(prompt), vocabulary=self.vocabulary, reverse=self.reverse
        )

    def python_reward(self, prompt: str, response: str) -> float:
        """The reward of texts."""
        n = f"([0-9]{{{self.digits}}})"
        a, b = tokens.fields(f"{n}\\+{n}=", prompt, self)
        return integers.reward_text(
            response, int(a) + int(b), self.response_length, reverse=self.reverse
        )

    def _draw(self, key: jax.Array) -> jax.Array:
        zero = tokens.id_of(self.vocabulary, "0")
        figures = jax.random.randint(key, (2, self.digits), 0, 10) + zero
        return tokens.join(self.vocabulary, figures[0], "+", figures[1], "=")

    def _summands(self, prompt: jax.Array) -> jax.Array:
        """[2] the two summands."""
        return integers.operands(prompt, self.digits, self.vocabulary)

    def _sum(self, prompt: jax.Array) -> jax.Array:
        return jnp.sum(self._summands(prompt))
