"""CartPole with a continuous force: the smallest task for a Gaussian policy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import gymnax, spaces
from ppo_jax.envs.protocol import StepResult
from ppo_jax.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class CartPoleContinuous:
    """gymnax's CartPole-v1 with force = force_mag · a, a ∈ [−1, 1].

    a = ±1 are the two actions of the discrete task. Reward, termination and the time limit of 500
    steps are those of CartPole-v1, so that the maximum return is 500.
    """

    cartpole: gymnax.GymnaxEnv
    name: str = "CartPoleContinuous-v1"
    action_space: spaces.Space = dataclasses.field(
        default_factory=lambda: spaces.Box(-1.0, 1.0, (1,))
    )

    @property
    def params(self) -> Any:
        return self.cartpole.params

    @property
    def observation_space(self) -> spaces.Space:
        return self.cartpole.observation_space

    @property
    def time_limit(self) -> int | None:
        return self.cartpole.time_limit

    @property
    def shortest_episode(self) -> int:
        return self.cartpole.shortest_episode

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start a new episode: (obs, state)."""
        return self.cartpole.reset(key, params)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step; the dynamics interpolates between the two forces, u = (a + 1) / 2."""
        push = (jnp.clip(action.reshape(()), -1.0, 1.0) + 1.0) / 2.0
        return self.cartpole.step(key, state, push, params)

    def render(self, state: PyTree) -> np.ndarray:
        """An image [H, W, 3] uint8."""
        return self.cartpole.render(state)


def make(**kwargs: Any) -> CartPoleContinuous:
    """Make CartPoleContinuous-v1; the arguments are parameters of CartPole-v1."""
    return CartPoleContinuous(gymnax.make("CartPole-v1", **kwargs))
