"""Linear equations: `+3x-7=+17,x=` is answered by `8`."""

import dataclasses

import jax
import jax.numpy as jnp

from ppo_jax.config.options import check_record, option
from ppo_jax.rlhf.tasks import integers, split, tokens


@dataclasses.dataclass(frozen=True)
class Equation:
    """The integer x that solves a x + b = c x + d, in which c x may be absent.

    x, a, b and c are drawn uniformly from the integers whose absolute values are at most `unknown`,
    `coefficient`, `constant` and `coefficient`, with a ≠ 0 and a ≠ c, and d = (a − c) x + b. The
    reward puts the answer into both sides and compares them.
    """

    unknown: int = option(9, "largest absolute value of the unknown", low=3, high=999)
    coefficient: int = option(5, "largest absolute value of a coefficient", low=2, high=99)
    constant: int = option(9, "largest absolute value of the constant on the left", low=1, high=999)
    both_sides: bool = option(False, "write the unknown on both sides of the equation")

    vocabulary = "+,-0123456789=x"

    def __post_init__(self) -> None:
        """Refuse a difficulty that is out of range."""
        check_record(self)

    @property
    def prompt_length(self) -> int:
        """Number of tokens of a prompt."""
        return 1 + sum(len(x) if isinstance(x, str) else x + 1 for x in self._layout())

    @property
    def response_length(self) -> int:
        """Maximum number of tokens of a response."""
        return len(str(self.unknown)) + 2

    def problems(self, key: jax.Array, n: int, held_out: bool | jax.Array) -> jax.Array:
        """[n, P] prompts; equations with equal differences of their sides are in one part."""
        return split.problems(key, n, held_out, draw=self._draw, identity=self._identity)

    def solve(self, prompt: jax.Array) -> jax.Array:
        """[R] the value of the unknown."""
        a, b, c, d = self._numbers(prompt)
        return integers.answer(
            (d - b) // (a - c),
            len(str(self.unknown)),
            self.response_length,
            vocabulary=self.vocabulary,
        )

    def reward(self, prompt: jax.Array, response: jax.Array) -> jax.Array:
        """[] 1 if the response solves the equation, otherwise 0."""
        valid, x = integers.read(response, zero=self._id("0"), minus=self._id("-"))
        a, b, c, d = self._numbers(prompt)
        return (valid & (a * x + b == c * x + d)).astype(jnp.float32)

    def python_reward(self, prompt: str, response: str) -> float:
        """The reward of texts."""
        layout = self._layout()
        pattern = "".join(x if isinstance(x, str) else f"([+-][0-9]{{{x}}})" for x in layout)
        a, b, *c, d = [int(x) for x in tokens.fields(pattern, prompt, self)]
        if len(response) >= self.response_length:  # int() refuses thousands of digits
            return 0.0
        x = integers.read_text(response, signed=True)
        return float(x is not None and a * x + b == sum(c) * x + d)

    def _layout(self) -> tuple[int | str, ...]:
        """The parts of a prompt: texts, and numbers of digits of integers with a sign."""
        sides = 2 if self.both_sides else 1
        a, b = len(str(self.coefficient)), len(str(self.constant))
        d = len(str(sides * self.coefficient * self.unknown + self.constant))
        return (a, "x", b, "=", *((a, "x") if self.both_sides else ()), d, ",x=")

    def _id(self, character: str) -> int:
        return tokens.id_of(self.vocabulary, character)

    def _draw(self, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 4)
        most = self.coefficient
        x = jax.random.randint(keys[0], (), -self.unknown, self.unknown + 1)
        b = jax.random.randint(keys[1], (), -self.constant, self.constant + 1)
        c = jax.random.randint(keys[2], (), -most, most + 1) if self.both_sides else jnp.int32(0)
        # a takes each value but 0 and c: those from the smaller of the two on are moved up.
        first, second = jnp.minimum(c, 0), jnp.maximum(c, 0)
        distinct = 2 * most + jnp.where(c == 0, 0, -1)
        a = jax.random.randint(keys[3], (), 0, distinct) - most
        a += a >= first
        a += (c != 0) & (a >= second)
        values = (a, b, c, (a - c) * x + b) if self.both_sides else (a, b, a * x + b)
        return self._write(values)

    def _write(self, values: tuple[jax.Array, ...]) -> jax.Array:
        """The prompt of the integers of an equation, in their order."""
        rest, parts = list(values), list[str | jax.Array]()
        for part in self._layout():
            if isinstance(part, str):
                parts.append(part)
                continue
            number = rest.pop(0)
            sign = jnp.where(number < 0, self._id("-"), self._id("+"))
            figures = integers.digits(jnp.abs(number), part) + self._id("0")
            parts += [sign[None], figures]
        return tokens.join(self.vocabulary, *parts)

    def _numbers(self, prompt: jax.Array) -> tuple[jax.Array, ...]:
        """(a, b, c, d) of a prompt."""
        found, start = [], 1
        for part in self._layout():
            if isinstance(part, str):
                start += len(part)
                continue
            size = integers.value(prompt[start + 1 : start + 1 + part] - self._id("0"))
            found.append(jnp.where(prompt[start] == self._id("-"), -size, size))
            start += part + 1
        a, b, *c, d = found
        return a, b, c[0] if c else jnp.int32(0), d

    def _identity(self, prompt: jax.Array) -> jax.Array:
        a, b, c, d = self._numbers(prompt)
        sign = jnp.sign(a - c)
        return sign * jnp.stack([a - c, d - b])
