"""Bodies with a State of their own and no clock, as brax and MuJoCo Playground have them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import StepResult
from ppo_jax.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class PhysicsEnv:
    """Simulated bodies and a clock; the state is (the suite's State, steps taken).

    Attributes:
        env: `reset(key) -> State`, `step(State, action) -> State`, with obs, reward and done.
        name: id.
        observation_space: Box.
        action_space: Box(−1, 1); actions are clipped to it.
        time_limit: steps after which an episode is truncated.
        shortest_episode: resets are drawn for episodes of at least so many steps.
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
        """(obs, state) of a new episode."""
        state = self.env.reset(key)
        return state.obs, (state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """One transition; `done` of the suite is termination, the clock truncation."""
        state, time = state
        state = self.env.step(state, jnp.clip(action, -1.0, 1.0))
        terminated, truncated = state.done > 0, time + 1 >= self.time_limit
        reward = jnp.asarray(state.reward, jnp.float32)
        return state.obs, (state, time + 1), reward, terminated, truncated, {}
