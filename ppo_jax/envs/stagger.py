"""Staggered first episodes: the environments of a run are reset at different times."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax.envs.protocol import (
    Env,
    InvalidEnvironment,
    StepResult,
    delegated,
    display_name,
    makes_vectors,
    render,
)
from ppo_jax.types import PyTree


@struct.dataclass
class StaggerState:
    """The state of an environment, and the time until its first episode is cut.

    Attributes:
        env_state: state of the environment.
        left: [] number of steps after which the episode is cut; 0 or less if it is not cut.
    """

    env_state: PyTree
    left: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class StaggeredEnv:
    """An environment whose first episode may be cut: the result of `staggered`.

    Attributes:
        env: environment with a time limit.
    """

    env: Env

    name = property(lambda self: display_name(self.env))
    params = delegated("params")
    observation_space, action_space = delegated("observation_space"), delegated("action_space")
    time_limit, shortest_episode = delegated("time_limit"), delegated("shortest_episode", 1)

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, StaggerState]:
        """Start an episode that is not cut: (obs, state)."""
        obs, state = self.env.reset(key, params)
        return obs, StaggerState(state, jnp.zeros((), jnp.int32))

    def spread(self, state: StaggerState) -> StaggerState:
        """The states of N environments at the start of a run, whose first episodes are cut.

        Args:
            state: states with leaves [N, ...].
        """
        num_envs = state.left.shape[0]
        cuts = first_cuts(num_envs, int(self.time_limit or 0))
        return dataclasses.replace(state, left=jnp.asarray(cuts, jnp.int32))

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step; info contains `shortened` [], whether the episode is cut at it."""
        obs, inner, reward, terminated, truncated, info = self.env.step(
            key, state.env_state, action, params
        )
        shortened = (state.left == 1) & ~(terminated | truncated)
        state = StaggerState(inner, jnp.maximum(state.left - 1, 0))
        info = {**info, "shortened": shortened}
        return obs, state, reward, terminated, truncated | shortened, info

    def render(self, state: StaggerState) -> np.ndarray:
        """An image [H, W, 3] uint8, drawn by the wrapped environment."""
        return render(self.env, state.env_state)


def first_cuts(num_envs: int, time_limit: int) -> np.ndarray:
    """The number of steps after which each environment's first episode is cut.

    k_i = ⌈(i + 1) L / N⌉ for i = 0, ..., N − 2;   the first episode of the last one is not cut

    Args:
        num_envs: number N of environments.
        time_limit: time limit L of an episode, in steps.

    Returns:
        [N] numbers of steps; 0 where k_i is the time limit itself.
    """
    cuts = -(-np.arange(1, num_envs + 1) * time_limit // num_envs)
    return np.where(cuts < time_limit, cuts, 0)


def staggered(env: Env) -> StaggeredEnv:
    """An environment whose copies are not reset at the same times.

    All environments start an episode at step 0. The first episode of environment i of N is cut
    after k_i = ⌈(i + 1) L / N⌉ steps, where L is the time limit, as if the time limit had been k_i:
    the value of the state is bootstrapped, and a new episode starts. An episode that has ended
    before is not cut, and no later episode is. Episodes that all last L steps then end at N
    different times, evenly spread over L steps, instead of all at once. No further environment
    steps are made, and the metrics of episodes do not count the cut ones.

    With several parts of the environments, N is the number in one part.

    Args:
        env: environment, an Env with a time limit.

    Raises:
        InvalidEnvironment: if the environment has no time limit, or makes its own vector
            environments.

    Source: Bharthulwar et al. 2025, Staggered Environment Resets Improve Massively Parallel
    On-Policy Reinforcement Learning (arXiv:2511.21011). Here the first episodes are shortened, as
    with init_at_random_ep_len in rsl_rl, but by evenly spaced instead of random numbers of steps.
    """
    name = display_name(env)
    if makes_vectors(env):
        raise InvalidEnvironment(
            f"stagger is on, but {name} makes its own vector environments and resets them itself; "
            "omit stagger"
        )
    if env.time_limit is None or math.isinf(env.time_limit):
        raise InvalidEnvironment(
            f"stagger is on, but {name} has no time limit over which first episodes can be spread; "
            "omit stagger"
        )
    return StaggeredEnv(env)
