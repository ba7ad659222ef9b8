"""Balanced brackets: `([]{=` is answered by `})`, which closes all brackets."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config.options import check_record, option
from ppo_jax.rlhf.tasks import split, tokens

PAIRS = ("()", "[]", "{}")


@dataclasses.dataclass(frozen=True)
class Brackets:
    """The completion of a prefix to a word in which every bracket is closed by its own kind.

    The words are those of the Dyck language of `kinds` kinds of brackets. Each further bracket of a
    prefix opens or closes with equal probability where both are possible. Any completion is right
    that balances the word within the length of a response; the worked answer is the shortest.

    Source: Chomsky & Schützenberger 1963, The Algebraic Theory of Context-Free Languages.
    """

    length: int = option(10, "number of brackets of the prefix", low=8, high=64)
    depth: int = option(5, "largest number of brackets that are open at a time", low=3, high=32)
    kinds: int = option(2, "number of kinds of brackets", low=1, high=3)

    @property
    def vocabulary(self) -> str:
        """The brackets and =, in ascending order."""
        return "".join(sorted("=" + "".join(PAIRS[: self.kinds])))

    def __post_init__(self) -> None:
        """Refuse a difficulty that is out of range."""
        check_record(self)

    @property
    def prompt_length(self) -> int:
        """Number of tokens of a prompt."""
        return self.length + 2

    @property
    def response_length(self) -> int:
        """Maximum number of tokens of a response."""
        return self.depth + 1

    def problems(self, key: jax.Array, n: int, held_out: bool | jax.Array) -> jax.Array:
        """[n, P] prompts; every prefix is in one part."""
        return split.problems(key, n, held_out, draw=self._draw, identity=lambda prompt: prompt)

    def solve(self, prompt: jax.Array) -> jax.Array:
        """[R] the closing brackets of all open ones, the last opened first."""
        stack, depth, _ = self._read(prompt[1:-1], jnp.ones((self.length,), bool))
        place = jnp.arange(self.response_length)
        closing = jnp.asarray(self._ids(1))[stack[depth - 1 - place]]
        return tokens.finish(closing, place < depth, self.response_length)

    def reward(self, prompt: jax.Array, response: jax.Array) -> jax.Array:
        """[] 1 if prefix and response are balanced, otherwise 0."""
        end = tokens.end(response)
        inside = jnp.arange(self.response_length) < end
        word = jnp.concatenate([prompt[1:-1], response])
        counted = jnp.concatenate([jnp.ones((self.length,), bool), inside])
        _, depth, valid = self._read(word, counted)
        return (valid & (depth == 0) & (end < self.response_length)).astype(jnp.float32)

    def python_reward(self, prompt: str, response: str) -> float:
        """The reward of texts."""
        known = re.escape("".join(PAIRS[: self.kinds]))
        (word,) = tokens.fields(f"([{known}]{{{self.length}}})=", prompt, self)
        if len(response) >= self.response_length:
            return 0.0
        stack = []
        for bracket in word + response:
            pair = next((p for p in PAIRS[: self.kinds] if bracket in p), None)
            if pair is None:
                return 0.0
            if bracket == pair[0]:
                stack.append(pair)
            elif not stack or stack.pop() != pair:
                return 0.0
        return float(not stack)

    def _ids(self, side: int) -> np.ndarray:
        """[kinds] ids of the opening brackets (side 0) or of the closing brackets (side 1)."""
        ids = [tokens.id_of(self.vocabulary, pair[side]) for pair in PAIRS[: self.kinds]]
        return np.asarray(ids, np.int32)

    def _draw(self, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, self.length)
        opening, closing = (jnp.asarray(self._ids(side)) for side in (0, 1))

        def step(state: Any, inputs: Any) -> Any:
            stack, depth = state
            key, last = inputs
            side_key, kind_key = jax.random.split(key)
            # The last bracket leaves one open, so that an answer is never empty.
            must_open = (depth == 0) | (last & (depth == 1))
            opens = must_open | (jax.random.bernoulli(side_key) & (depth < self.depth))
            kind = jnp.where(
                opens, jax.random.randint(kind_key, (), 0, self.kinds), stack[depth - 1]
            )
            stack = stack.at[jnp.where(opens, depth, self.depth)].set(kind, mode="drop")
            bracket = jnp.where(opens, opening[kind], closing[kind])
            return (stack, depth + jnp.where(opens, 1, -1)), bracket

        start = jnp.zeros((self.depth,), jnp.int32), jnp.int32(0)
        last = jnp.arange(self.length) == self.length - 1
        _, prefix = jax.lax.scan(step, start, (keys, last))
        return tokens.join(self.vocabulary, prefix, "=")

    def _read(self, word: jax.Array, counted: jax.Array) -> tuple[jax.Array, ...]:
        """The brackets that are open after a word [K]; tokens that are not counted are left out.

        Returns:
            (stack [K] of kinds, number of open brackets, whether no bracket was closed wrongly and
            all tokens are brackets).
        """
        # A model may have more ids than the task has tokens.
        kind = jnp.asarray(self._kinds()).at[word].get(mode="fill", fill_value=-1)
        opens = jnp.isin(word, self._ids(0))

        def step(state: Any, inputs: Any) -> Any:
            stack, depth, valid = state
            kind, opens, counts = inputs
            matches = (depth > 0) & (stack[depth - 1] == kind)
            valid &= ~counts | ((kind >= 0) & (opens | matches))
            push = counts & opens
            stack = stack.at[jnp.where(push, depth, len(word))].set(kind, mode="drop")
            depth += jnp.where(counts, jnp.where(opens, 1, -1), 0)
            return (stack, jnp.maximum(depth, 0), valid), None

        start = jnp.zeros((len(word),), jnp.int32), jnp.int32(0), jnp.bool_(True)
        return jax.lax.scan(step, start, (kind, opens, counted))[0]

    def _kinds(self) -> np.ndarray:
        """[V] the kind of the bracket of each token id, -1 for other tokens."""
        kinds = np.full((tokens.size(self.vocabulary),), -1, np.int32)
        for side in (0, 1):
            kinds[self._ids(side)] = np.arange(self.kinds)
        return kinds
