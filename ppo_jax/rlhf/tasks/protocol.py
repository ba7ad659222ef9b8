"""The interface of reasoning tasks."""

from typing import Protocol

import jax


class Task(Protocol):
    """A task, as a frozen dataclass whose fields are the numbers that state its difficulty.

    Shapes: P is prompt_length and R is response_length. Token ids are those of `tokens`.

    Attributes:
        vocabulary: characters of prompts and responses, in ascending order; one token each.
        prompt_length: number of tokens of every prompt, including <bos>.
        response_length: maximum number of tokens of a response, including <eos>.
    """

    @property
    def vocabulary(self) -> str: ...

    @property
    def prompt_length(self) -> int: ...

    @property
    def response_length(self) -> int: ...

    def problems(self, key: jax.Array, n: int, held_out: bool | jax.Array) -> jax.Array:
        """Draw problems; the training problems and the held-out problems are disjoint.

        Args:
            key: PRNG key, which determines the problems.
            n: number of problems. Static.
            held_out: whether the problems are held out from training.

        Returns:
            [n, P] int32 prompts.
        """

    def solve(self, prompt: jax.Array) -> jax.Array:
        """A right response to a prompt [P], as [R] int32 with <eos>, then padding."""

    def reward(self, prompt: jax.Array, response: jax.Array) -> jax.Array:
        """1 if a response is right, 0 if it is wrong or malformed.

        Args:
            prompt: [P] token ids.
            response: [R] token ids; those after the first <eos> do not count. A response without
                <eos> is malformed.

        Returns:
            [] float32 reward.
        """

    def python_reward(self, prompt: str, response: str) -> float:
        """The same reward of texts without special tokens, computed in plain Python.

        Raises:
            ValueError: the text is not a prompt of this task.
        """
