"""The records that flow through a training step, and the shape letters used everywhere.

T steps of a rollout · N parallel environments · M rows of a batch (T·N) · A actions ·
D action dimensions · U updates · S seeds · E episodes · P parameters · K epochs · L tokens ·
V vocabulary
"""

from collections.abc import Callable
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
    """

    init: Callable[[jax.Array, PyTree], LearnerState]
    estimate: Callable[[Trajectory], Batch]
    update: Callable[[jax.Array, LearnerState, Batch], tuple[LearnerState, Metrics]]
