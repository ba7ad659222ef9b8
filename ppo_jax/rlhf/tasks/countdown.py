"""Countdown: `2,5,7:49=` (reach 49 with the numbers 2, 5 and 7) is answered by `(2+5)*7`."""

import collections
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config.options import ConfigError, check_record, option
from ppo_jax.rlhf.tasks import expressions, integers, split, tokens

OPERATIONS = "+-*/"


@dataclasses.dataclass(frozen=True)
class Countdown:
    """An expression of given numbers whose value is a given number, the target.

    Each number may be used at most once, and a division must be exact. The problems are drawn
    backwards, ((n₁ ∘ n₂) ∘ n₃) ∘ ..., with values from 1 to `target` after each operation, so that
    each has a solution; the target is none of the numbers. Any right expression is rewarded; the
    worked answer is the first right one of this form that uses all numbers.

    Source: Gandhi et al. 2024, Stream of Search (the game as a task of language models).
    """

    count: int = option(3, "number of given numbers", low=3, high=4)
    largest: int = option(9, "largest of the given numbers", low=5, high=99)
    target: int = option(99, "largest target, at least twice the largest number", low=10, high=9999)
    operations: str = option(
        "+-*/", "operations of the drawn solutions", choices=("+-", "+-*", "+-*/")
    )

    vocabulary = "()*+,-/0123456789:="

    def __post_init__(self) -> None:
        """Refuse a difficulty that is out of range."""
        check_record(self)
        if self.target < 2 * self.largest:
            raise ConfigError(
                f"target is {self.target} and largest is {self.largest}; target must be at least "
                f"{2 * self.largest}, so that every problem has a solution"
            )

    @property
    def prompt_length(self) -> int:
        """Number of tokens of a prompt."""
        return 2 + self.count * (self._width + 1) + self._target_width

    @property
    def response_length(self) -> int:
        """Maximum number of tokens of a response: all numbers, operations, brackets and <eos>."""
        return self.count * self._width + (self.count - 1) + 2 * (self.count - 2) + 1

    def problems(self, key: jax.Array, n: int, held_out: bool | jax.Array) -> jax.Array:
        """[n, P] prompts; all orders of the same numbers with one target are in the same part."""

        def identity(prompt: jax.Array) -> jax.Array:
            numbers, target = self._read(prompt)
            return jnp.append(jnp.sort(numbers), target)

        def accept(prompt: jax.Array) -> jax.Array:
            numbers, target = self._read(prompt)
            return jnp.all(numbers != target)

        return split.problems(key, n, held_out, draw=self._draw, identity=identity, accept=accept)

    def solve(self, prompt: jax.Array) -> jax.Array:
        """[R] an expression of all numbers; an empty response if there is none of that form."""
        numbers, target = self._read(prompt)
        orders, chosen = self._candidates()
        value, exact = self._fold(numbers[orders], chosen)
        right = exact & (value == target)
        first = jnp.argmax(right)
        text, keep = self._expression(numbers[orders[first]], chosen[first])
        return tokens.finish(text, keep & right[first], self.response_length)

    def reward(self, prompt: jax.Array, response: jax.Array) -> jax.Array:
        """[] 1 if the response reaches the target, otherwise 0."""
        numbers, target = self._read(prompt)
        found = expressions.evaluate(response, self.vocabulary)
        same = found.is_number & (found.numbers == found.numbers[:, None])
        given = jnp.sum(numbers == found.numbers[:, None], axis=1)
        allowed = jnp.all(~found.is_number | (jnp.sum(same, axis=1) <= given))
        return (found.valid & allowed & (found.value == target)).astype(jnp.float32)

    def python_reward(self, prompt: str, response: str) -> float:
        """The reward of texts."""
        number = f"([0-9]{{{self._width}}})"
        pattern = ",".join([number] * self.count) + f":([0-9]{{{self._target_width}}})="
        *numbers, target = map(int, tokens.fields(pattern, prompt, self))
        if len(response) >= self.response_length:
            return 0.0
        value, used = expressions.evaluate_text(response)
        left = collections.Counter(used) - collections.Counter(numbers)
        return float(value == target and not left)

    @property
    def _width(self) -> int:
        return len(str(self.largest))

    @property
    def _target_width(self) -> int:
        return len(str(self.target))

    def _ids(self, text: str) -> jax.Array:
        return jnp.asarray(tokens.encode(self.vocabulary, text))

    def _write(self, numbers: jax.Array, width: int) -> jax.Array:
        return integers.digits(numbers, width) + tokens.id_of(self.vocabulary, "0")

    def _draw(self, key: jax.Array) -> jax.Array:
        number_key, order_key, step_key = jax.random.split(key, 3)
        numbers = jax.random.randint(number_key, (self.count,), 1, self.largest + 1)

        def step(value: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
            number, key = inputs
            results, exact = _results(value, number)
            known = jnp.arange(len(OPERATIONS)) < len(self.operations)
            allowed = known & exact & (results >= 1) & (results <= self.target)
            operation = jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf))
            return results[operation], None

        keys = jax.random.split(step_key, self.count - 1)
        order = jax.random.permutation(order_key, numbers)
        target, _ = jax.lax.scan(step, order[0], (order[1:], keys))
        rows = self._write(numbers, self._width)
        comma = jnp.broadcast_to(self._ids(","), (self.count, 1))
        listed = jnp.concatenate([rows, comma], axis=1).reshape(-1)[:-1]
        return tokens.join(
            self.vocabulary, listed, ":", self._write(target, self._target_width), "="
        )

    def _read(self, prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
        """([count] the numbers of a prompt, its target)."""
        figures = prompt - tokens.id_of(self.vocabulary, "0")
        size = self.count * (self._width + 1)
        numbers = figures[1 : size + 1].reshape(self.count, self._width + 1)[:, :-1]
        return integers.value(numbers), integers.value(figures[size + 1 : -1])

    def _candidates(self) -> tuple[jax.Array, jax.Array]:
        """All expressions of the form ((n₁ ∘ n₂) ∘ n₃) ∘ ...: [K, count] orders of the numbers, and
        [K, count - 1] operations."""
        orders = list(itertools.permutations(range(self.count)))
        operations = list(itertools.product(range(len(self.operations)), repeat=self.count - 1))
        pairs = itertools.product(orders, operations)
        first, second = (np.asarray(column) for column in zip(*pairs, strict=True))
        return jnp.asarray(first), jnp.asarray(second)

    def _fold(self, numbers: jax.Array, operations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The values [K] of the expressions, and whether all their divisions are exact [K]."""

        def step(state: Any, inputs: Any) -> tuple[Any, None]:
            value, valid = state
            number, operation = inputs
            results, exact = _results(value, number)
            pick = lambda x: jnp.take_along_axis(x, operation[None], axis=0)[0]
            return (pick(results), valid & pick(exact)), None

        start = numbers[:, 0], jnp.ones((len(numbers),), bool)
        return jax.lax.scan(step, start, (numbers[:, 1:].T, operations.T))[0]

    def _expression(self, numbers: jax.Array, operations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The tokens of ((n₁ ∘ n₂) ∘ n₃) ∘ ..., and which of them are needed.

        Brackets are needed around a sum or a difference before a multiplication or a division.
        """
        brackets = (operations[1:] >= 2) & (operations[:-1] < 2)  # [count - 2]
        signs = self._ids(OPERATIONS)[operations]
        written = self._write(numbers, self._width)
        opening, closing = self._ids("()")
        always = jnp.ones((self._width,), bool)
        parts = [jnp.broadcast_to(opening, brackets.shape), written[0]]
        keep = [brackets, always]
        for i in range(self.count - 1):
            if i:
                parts.append(closing[None])
                keep.append(brackets[i - 1 : i])
            parts += [signs[i : i + 1], written[i + 1]]
            keep += [always[:1], always]
        return jnp.concatenate(parts), jnp.concatenate(keep)


def _results(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([4, ...] results of + - * /, [4, ...] whether they are exact); b >= 1."""
    exact = jnp.ones_like(a, bool)
    return jnp.stack([a + b, a - b, a * b, a // b]), jnp.stack([exact, exact, exact, a % b == 0])
