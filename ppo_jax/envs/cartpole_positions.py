"""CartPole without velocities in the observation: a task for recurrent policies."""

import dataclasses
from typing import Any

import jax
import numpy as np

from ppo_jax.envs import gymnax, spaces
from ppo_jax.envs.protocol import StepResult
from ppo_jax.types import PyTree

# The two positions among (x, ẋ, θ, θ̇).
POSITIONS = np.array([0, 2])


@dataclasses.dataclass(frozen=True, eq=False)
class CartPolePositions:
    """gymnax's CartPole-v1 with the observation (x, θ).

    Reward, termination and the time limit of 500 steps are those of CartPole-v1, so that the
    maximum return is 500. A single observation does not show whether the pole is falling or rising.

    Source: Barto, Sutton & Anderson 1983 for the task; partially observed as in Wierstra et al.
    2007, Solving Deep Memory POMDPs with Recurrent Policy Gradients, section 4.
    """

    cartpole: gymnax.GymnaxEnv
    name: str = "CartPolePositions-v1"

    @property
    def params(self) -> Any:
        return self.cartpole.params

    @property
    def observation_space(self) -> spaces.Space:
        whole = self.cartpole.observation_space
        return spaces.Box(whole.low[POSITIONS], whole.high[POSITIONS], (2,))

    @property
    def action_space(self) -> spaces.Space:
        return self.cartpole.action_space

    @property
    def time_limit(self) -> int | None:
        return self.cartpole.time_limit

    @property
    def shortest_episode(self) -> int:
        return self.cartpole.shortest_episode

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start a new episode: (obs, state)."""
        obs, state = self.cartpole.reset(key, params)
        return obs[POSITIONS], state

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step."""
        obs, *others = self.cartpole.step(key, state, action, params)
        return obs[POSITIONS], *others

    def render(self, state: PyTree) -> np.ndarray:
        """An image [H, W, 3] uint8."""
        return self.cartpole.render(state)


def make(**kwargs: Any) -> CartPolePositions:
    """Make CartPolePositions-v1; the arguments are parameters of CartPole-v1."""
    return CartPolePositions(gymnax.make("CartPole-v1", **kwargs))
