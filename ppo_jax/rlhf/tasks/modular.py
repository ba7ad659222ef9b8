"""Modular arithmetic: `37*21%13=` is answered by `10`."""

import dataclasses

import jax
import jax.numpy as jnp

from ppo_jax.config.options import ConfigError, check_record, option
from ppo_jax.rlhf.tasks import integers, split, tokens

OPERATIONS = "+-*"


@dataclasses.dataclass(frozen=True)
class Modular:
    """The residue (a ∘ b) mod m, 0 <= residue < m, of an operation ∘ of two integers.

    Operands, operation and modulus, 2 <= m <= `modulus`, are drawn uniformly. An answer is right if
    its value is the residue. A model that is trained on every problem with one modulus may learn it
    by heart before it generalises.

    Source: Power et al. 2022, Grokking: Generalization Beyond Overfitting on Small Algorithmic
    Datasets (there with one prime modulus).
    """

    digits: int = option(2, "number of digits of each operand", low=1, high=4)
    modulus: int = option(20, "largest modulus", low=5, high=9999)
    operations: str = option("+-*", "the operations that are drawn, some of + - *")

    vocabulary = "%*+-0123456789="

    def __post_init__(self) -> None:
        """Refuse a difficulty that is out of range."""
        check_record(self)
        given = self.operations
        if not given or len(set(given)) < len(given) or not set(given) <= set(OPERATIONS):
            raise ConfigError(
                f"operations is {given!r}; it must be some of {OPERATIONS}, each at most once"
            )

    @property
    def prompt_length(self) -> int:
        """Number of tokens of a prompt."""
        return 2 * self.digits + self._width + 4

    @property
    def response_length(self) -> int:
        """Maximum number of tokens of a response."""
        return self._width + 1

    def problems(self, key: jax.Array, n: int, held_out: bool | jax.Array) -> jax.Array:
        """[n, P] prompts; sums and products of the same operands are in the same part."""
        return split.problems(key, n, held_out, draw=self._draw, identity=self._identity)

    def solve(self, prompt: jax.Array) -> jax.Array:
        """[R] the residue with as many digits as the largest modulus."""
        figures = integers.digits(self._residue(prompt), self._width) + self._id("0")
        return tokens.finish(figures, jnp.ones((self._width,), bool), self.response_length)

    def reward(self, prompt: jax.Array, response: jax.Array) -> jax.Array:
        """[] 1 if the response is the residue, otherwise 0."""
        return integers.reward(response, self._residue(prompt), vocabulary=self.vocabulary)

    def python_reward(self, prompt: str, response: str) -> float:
        """The reward of texts."""
        n, m = f"([0-9]{{{self.digits}}})", f"([0-9]{{{self._width}}})"
        a, operation, b, modulus = tokens.fields(f"{n}([*+-]){n}%{m}=", prompt, self)
        results = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
        residue = results[operation] % int(modulus)
        return integers.reward_text(response, residue, self.response_length)

    @property
    def _width(self) -> int:
        return len(str(self.modulus))

    def _id(self, character: str) -> int:
        return tokens.id_of(self.vocabulary, character)

    def _draw(self, key: jax.Array) -> jax.Array:
        operand_key, operation_key, modulus_key = jax.random.split(key, 3)
        figures = jax.random.randint(operand_key, (2, self.digits), 0, 10) + self._id("0")
        known = jnp.asarray(tokens.encode(self.vocabulary, self.operations))
        operation = jax.random.choice(operation_key, known, (1,))
        modulus = jax.random.randint(modulus_key, (), 2, self.modulus + 1)
        written = integers.digits(modulus, self._width) + self._id("0")
        return tokens.join(self.vocabulary, figures[0], operation, figures[1], "%", written, "=")

    def _parts(self, prompt: jax.Array) -> tuple[jax.Array, ...]:
        """(id of the operation, first operand, second operand, modulus)."""
        n, figures = self.digits, prompt - self._id("0")
        first, second = figures[1 : n + 1], figures[n + 2 : 2 * n + 2]
        modulus = figures[2 * n + 3 : 2 * n + 3 + self._width]
        return prompt[n + 1], *map(integers.value, (first, second, modulus))

    def _identity(self, prompt: jax.Array) -> jax.Array:
        operation, a, b, modulus = self._parts(prompt)
        swap = (operation != self._id("-")) & (a > b)
        return jnp.stack([operation, jnp.where(swap, b, a), jnp.where(swap, a, b), modulus])

    def _residue(self, prompt: jax.Array) -> jax.Array:
        operation, a, b, modulus = self._parts(prompt)
        others = jnp.where(operation == self._id("-"), a - b, a * b)
        return jnp.where(operation == self._id("+"), a + b, others) % modulus
