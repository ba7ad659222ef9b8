"""The records that flow through a training step, and the letters that name dimensions.

T steps of a rollout · N parallel environments · M samples of a batch (T·N) · A actions ·
D action dimensions · U updates · S seeds · E episodes · P parameters · K epochs · L tokens ·
V vocabulary size
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
    """The data that `collect` returns: T consecutive steps of N environments.

    Attributes:
        obs: [T, N, ...] inputs of the network, that is, observations after normalisation.
        action: [T, N, ...] actions as drawn from the policy, before clipping or squashing.
        log_prob: [T, N] log π(a_t | s_t) under the behaviour policy.
        value: [T, N] value estimates V(s_t).
        next_value: [T, N] value estimates V(s_{t+1}); where an episode was truncated, s_{t+1} is
            its true final state and not the first state of the next episode.
        reward: [T, N] rewards, scaled if rewards are normalised.
        terminated: [T, N] bool, whether the value of the successor state is zero: the episode
            terminated, or the environment reported a boundary of credit within the episode.
        done: [T, N] bool, whether the episode terminated or was truncated, so that the next step
            belongs to another episode.
        weight: [T, N] 1 for valid steps, 0 for padding and dummy steps.
        extra: further [T, N, ...] leaves of an algorithm, passed on unchanged.
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
    """Training data of an update: a trajectory with its advantages and value targets.

    The leaves are [T, N, ...] when `estimate` returns them and [M, ...] after `rows` has flattened
    them.
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
    """The state that an update changes.

    Attributes:
        params: parameters of the policy.
        opt_state: state of the optimiser.
        step: [] number of optimiser steps taken.
        extra: private state of the algorithm.
    """

    params: Params
    opt_state: PyTree
    step: jax.Array
    extra: PyTree = ()


@struct.dataclass
class TrainState:
    """The complete state of a run. A checkpoint stores one TrainState and needs nothing else."""

    learner: LearnerState
    rollout: PyTree
    key: jax.Array
    update: jax.Array


class Algorithm(NamedTuple):
    """An on-policy algorithm as three pure functions, the only ones that the training step calls.

    init(key, obs) -> LearnerState
    estimate(Trajectory) -> Batch [T, N] with advantages and targets
    update(key, LearnerState, Batch [M]) -> (LearnerState, Metrics)
    """

    init: Callable[[jax.Array, PyTree], LearnerState]
    estimate: Callable[[Trajectory], Batch]
    update: Callable[[jax.Array, LearnerState, Batch], tuple[LearnerState, Metrics]]
