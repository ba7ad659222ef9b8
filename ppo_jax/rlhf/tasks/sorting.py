"""Sorting of integers: `31,07,22=` is answered by `07,22,31`."""

import dataclasses

import jax
import jax.numpy as jnp

from ppo_jax.config.options import check_record, option
from ppo_jax.rlhf.tasks import integers, split, tokens


@dataclasses.dataclass(frozen=True)
class Sorting:
    """A list of integers in ascending order, each with all its digits.

    The integers are drawn uniformly and independently, so that some may be equal.
    """

    count: int = option(4, "number of integers in the list", low=3, high=20)
    digits: int = option(1, "number of digits of each integer", low=1, high=4)

    vocabulary = ",0123456789="

    def __post_init__(self) -> None:
        """Refuse a difficulty that is out of range."""
        check_record(self)

    @property
    def prompt_length(self) -> int:
        """Number of tokens of a prompt."""
        return self.count * (self.digits + 1) + 1

    @property
    def response_length(self) -> int:
        """Number of tokens of a right response."""
        return self.count * (self.digits + 1)

    def problems(self, key: jax.Array, n: int, held_out: bool | jax.Array) -> jax.Array:
        """[n, P] prompts; all orders of the same integers are in the same part."""
        return split.problems(
            key, n, held_out, draw=self._draw, identity=lambda p: jnp.sort(self._items(p))
        )

    def solve(self, prompt: jax.Array) -> jax.Array:
        """[R] the sorted list."""
        text = self._write(jnp.sort(self._items(prompt)))[:-1]
        return tokens.finish(text, jnp.ones_like(text, bool), self.response_length)

    def reward(self, prompt: jax.Array, response: jax.Array) -> jax.Array:
        """[] 1 if the response is the sorted list, otherwise 0."""
        # Its <eos> is the last token, so that no token is left that would not count.
        return jnp.all(response == self.solve(prompt)).astype(jnp.float32)

    def python_reward(self, prompt: str, response: str) -> float:
        """The reward of texts."""
        pattern = ",".join([f"[0-9]{{{self.digits}}}"] * self.count)
        (listed,) = tokens.fields(f"({pattern})=", prompt, self)
        return float(response.split(",") == sorted(listed.split(",")))

    def _draw(self, key: jax.Array) -> jax.Array:
        items = jax.random.randint(key, (self.count,), 0, 10**self.digits)
        return tokens.join(self.vocabulary, self._write(items)[:-1], "=")

    def _write(self, items: jax.Array) -> jax.Array:
        """The integers [count] as tokens, with a comma after each."""
        figures = integers.digits(items, self.digits) + tokens.id_of(self.vocabulary, "0")
        comma = jnp.full((self.count, 1), tokens.id_of(self.vocabulary, ","))
        return jnp.concatenate([figures, comma], axis=1).reshape(-1)

    def _items(self, prompt: jax.Array) -> jax.Array:
        """[count] the integers of a prompt."""
        rows = prompt[1:].reshape(self.count, self.digits + 1)
        return integers.value(rows[:, :-1] - tokens.id_of(self.vocabulary, "0"))
