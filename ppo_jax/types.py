"""The records that flow through a training step, and the shape letters used everywhere.

T steps of a rollout · N parallel environments · M rows of a batch (T·N) · A actions ·
D action dimensions · U updates · S seeds · E episodes · P parameters · K epochs · L tokens ·
V vocabulary
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import struct

PyTree = Any
Params = Any
Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, "Batch"], tuple[jax.Array, Metrics]]


@struct.dataclass
class Trajectory:
    """What `collect` returns: T steps of N environments, in the order they happened.

    Attributes:
        obs: [T, N, ...] the network's inputs (observations as the policy saw them: normalised).
        action: [T, N, ...] as drawn from the policy, before any clipping or squashing.
        log_prob: [T, N] log π(a_t | s_t) under the behaviour policy.
        value: [T, N] V(s_t).
        next_value: [T, N] V(s_{t+1}), of the true successor where a time limit cut the episode.
        reward: [T, N] scaled if rewards are normalised.
        terminated: [T, N] bool: the episode ended by itself, or what was done in it is settled;
            nothing is worth anything afterwards.
        done: [T, N] bool: terminated or truncated; the next row owes nothing to this one.
        weight: [T, N] 1 for steps that count, 0 for padding and dummy steps.
        extra: whatever a method carries along, [T, N, ...] leaves, untouched.
    """

    obs: PyTree
    action: PyTree
    log_prob: jax.Array
    value: jax.Array
    next_value: jax.Array
    reward: jax.Array
    terminated: jax.Array
    done: jax.Array
    weight: jax.Array
    extra: PyTree = ()


@struct.dataclass
class Batch:
    """What an update learns from: a trajectory with its advantages and value targets.

    Leaves are [T, N, ...] as `estimate` leaves them and [M, ...] once `rows` has flattened them.
    """

    obs: PyTree
    action: PyTree
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array
    weight: jax.Array
    extra: PyTree = ()


@struct.dataclass
class LearnerState:
    """Everything an update changes.

    Attributes:
        params: of the policy.
        opt_state: of the optimiser.
        step: [] optimiser steps taken.
        extra: private state of an algorithm.
    """

    params: Params
    opt_state: PyTree
    step: jax.Array
    extra: PyTree = ()


@struct.dataclass
class TrainState:
    """The whole state of a run. A checkpoint is one of these; a resumed run needs nothing else."""

    learner: LearnerState
    rollout: PyTree
    key: jax.Array
    update: jax.Array


class Algorithm(NamedTuple):
    """An on-policy algorithm: three pure functions, all that the training step knows of it.

    init(key, obs) -> LearnerState
    estimate(Trajectory) -> Batch [T, N]: advantages and targets
    update(key, LearnerState, Batch [M]) -> (LearnerState, Metrics)
    frozen: whether update takes the arrays that nothing changes as a fourth argument
    """

    init: Callable[[jax.Array, PyTree], LearnerState]
    estimate: Callable[[Trajectory], Batch]
    update: Callable[..., tuple[LearnerState, Metrics]]
    frozen: bool = False


# Options and hints live here, at the bottom of the house, because algorithms declare options and
# may import nothing higher.


class Bounds(NamedTuple):
    """The values an option may take; numbers are finite unless `high` is infinity itself."""

    low: float | None
    high: float | None
    open_low: bool
    choices: tuple[str, ...] | None

    def admits(self, value: Any) -> bool:
        """Whether a concrete value lies inside; NaN never does."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, str | Path):
            return True
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = value <= self.high if self.high is not None else value < math.inf
        return bool(above and below and value > -math.inf)

    def __str__(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        parts = []
        if self.low is not None:
            parts.append(f"{'>' if self.open_low else '>='} {self.low}")
        if self.high is not None and self.high < math.inf:
            parts.append(f"<= {self.high}")
        return " and ".join(parts) or "finite"


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field that knows its help text and what it may be set to.

    The command line, the validation and the documentation all read it from here.

    Args:
        default: its value if none is given.
        doc: help text.
        low: least value, itself excluded if `open_low`.
        high: greatest value; infinity admits infinity.
        open_low: whether `low` itself is excluded.
        choices: the names it may be one of.
    """
    bounds = Bounds(low, high, open_low, choices)
    return dataclasses.field(default=default, metadata={"doc": doc, "bounds": bounds})


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a message: the nearest known names, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
