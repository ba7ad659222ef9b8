"""Physics environments without a time limit of their own, as in brax and MuJoCo Playground."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import StepResult
from ppo_jax.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class PhysicsEnv:
    """A physics environment with a step counter; its state is (State of the suite, step count).

    Attributes:
        env: object with `reset(key) -> State` and `step(State, action) -> State`, where State has
            obs, reward and done.
        name: id of the environment.
        observation_space: Box of observations.
        action_space: Box(−1, 1); actions are clipped to it.
        time_limit: number of steps after which an episode is truncated.
        shortest_episode: lower bound of the episode length, for the size of the reset pool.
        params: () (the bodies are constants of the program).
    """

    env: Any
    name: str
    observation_space: spaces.Box
    action_space: spaces.Box
    time_limit: int
    shortest_episode: int
    params: tuple[()] = ()

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start a new episode: (obs, state)."""
        state = self.env.reset(key)
        return state.obs, (state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step; `done` of the suite is a termination, the time limit a truncation."""
        state, time = state
        state = self.env.step(state, jnp.clip(action, -1.0, 1.0))
        terminated, truncated = state.done > 0, time + 1 >= self.time_limit
        reward = jnp.asarray(state.reward, jnp.float32)
        return state.obs, (state, time + 1), reward, terminated, truncated, {}
