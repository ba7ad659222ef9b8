"""Calls of Python reward functions: prompts, completions and the columns of the data as arguments.

The convention is that of TRL: `def reward(prompts, completions, **columns)`, in which every
argument is a list with one value for each response.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ppo_jax.rlhf.formats import Conversation, Prompt, Text

# (prompts, completions, columns as keyword arguments) -> one score for each completion
RewardFunction = Callable[..., Sequence[float | None]]


class PromptTable:
    """The prompts of a run with the other columns of their records, by row.

    Several datasets may be added; a row index counts through all of them.
    """

    def __init__(self, prompts: Sequence[Prompt] = ()) -> None:
        """Make a table of the prompts of one dataset, whose rows begin at 0."""
        self._prompts: list[Prompt] = []
        self.columns: list[str] = []
        self.common: list[str] | None = None  # the columns that all datasets have
        self.add(prompts)

    def add(self, prompts: Sequence[Prompt]) -> int:
        """Add the prompts of a further dataset; returns the row of its first prompt."""
        first = len(self._prompts)
        self._prompts += prompts
        names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
        self.columns += [name for name in names if name not in self.columns]
        if prompts:
            self.common = [n for n in names if self.common is None or n in self.common]
        return first

    def __getitem__(self, row: int) -> Prompt:
        """The prompt of a row."""
        return self._prompts[row]

    def values(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """Column -> its values in the given rows, None where a record lacks the column."""
        return {n: [self._prompts[i].columns.get(n) for i in rows] for n in self.columns}


class Call:
    """A reward function, with the arguments that its signature asks for.

    A function with a parameter `completions`, or with keyword arguments only, is called with
    keywords: prompts, completions, completion_ids and columns, as far as it accepts them. In the
    data of conversations, prompts are lists of messages, and each completion is a list with one
    message of the assistant. Any other function is called with the prompts and the texts of the
    responses as its first two arguments, and with the columns that it accepts as keywords.
    """

    def __init__(self, function: RewardFunction, name: str, columns: Sequence[str] | None) -> None:
        """Read the signature of a function.

        Args:
            function: the function.
            name: its name in messages.
            columns: columns of the data; None if they are unknown.

        Raises:
            ValueError: the function requires an argument that is not a column of the data.
        """
        self.function, self.name = function, name
        self.parameters = _parameters(function)
        kinds = {p.kind for p in self.parameters}
        self.everything = inspect.Parameter.VAR_KEYWORD in kinds
        self.named = {p.name for p in self.parameters if p.kind in _BY_NAME}
        places = [p for p in self.parameters if p.kind in _BY_PLACE]
        self.by_name = "completions" in self.named or (self.everything and not places)
        if not self.by_name:
            self.positions = {p.name for p in places[:2]}
            self.named -= self.positions
            self._check_two(len(places), kinds)
        if columns is not None:
            self._check_columns(columns)

    def _check_two(self, count: int, kinds: set[Any]) -> None:
        if count < 2 and inspect.Parameter.VAR_POSITIONAL not in kinds:
            raise ValueError(
                f"{self.name} must take prompts and completions, such as "
                "def reward(prompts, completions, **columns)"
            )

    def _check_columns(self, columns: Sequence[str]) -> None:
        given = {*columns, *(_OURS if self.by_name else ())}
        required = {p.name for p in self.parameters if p.default is inspect.Parameter.empty}
        missing = sorted((self.named & required) - given)
        if missing:
            raise ValueError(
                f"{self.name} requires {', '.join(missing)}, but the data have no column of that "
                f"name; their columns are {', '.join(columns) or 'prompt alone'}"
            )

    def __call__(
        self,
        prompts: list[Text],
        responses: list[str],
        ids: list[list[int]],
        columns: dict[str, list[Any]],
    ) -> Sequence[float | None]:
        """The scores of the responses.

        Args:
            prompts: [B] texts or conversations.
            responses: [B] texts of the responses.
            ids: [B] token ids of the responses.
            columns: column -> its B values.
        """
        if not self.by_name:
            # A column may have the name of an argument that is given by its position.
            others = {n: x for n, x in columns.items() if n not in self.positions}
            return self.function(prompts, responses, **self._accepted(others))
        completions: list[Any] = [
            r if isinstance(p, str) else _answer(r) for p, r in zip(prompts, responses, strict=True)
        ]
        ours = {"prompts": prompts, "completions": completions, "completion_ids": ids}
        return self.function(**self._accepted({**columns, **ours}))

    def _accepted(self, given: dict[str, Any]) -> dict[str, Any]:
        return given if self.everything else {k: v for k, v in given.items() if k in self.named}


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_PLACE = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
_OURS = ("prompts", "completions", "completion_ids")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        # A signature that cannot be read, as of some functions in C: prompts and responses.
        return [inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL)]


def _answer(text: str) -> Conversation:
    return [{"role": "assistant", "content": text}]


def checked(scores: Any, responses: Sequence[str], name: str, optional: bool) -> np.ndarray:
    """The scores that a function returned, as an array.

    Args:
        scores: the result of the function.
        responses: [B] texts of the responses.
        name: name of the function in messages.
        optional: whether None is allowed, for a response that the function does not score.

    Returns:
        [B] float32 scores, NaN for None.

    Raises:
        ValueError: the number of scores is wrong, or one is not a finite number.
    """
    found = [None if optional and x is None else float(x) for x in scores]
    if len(found) != len(responses):
        raise ValueError(f"{name} returned {len(found)} scores for {len(responses)} responses")
    for score, response in zip(found, responses, strict=True):
        if score is not None and not math.isfinite(score):
            raise ValueError(f"{name} returned {score} for the response {response!r}")
    return np.asarray([math.nan if x is None else x for x in found], np.float32)
