"""Suite `craftax`: Craftax and Craftax-Classic, with symbolic or pixel observations.

A reset generates a world, which takes much longer than a step. The option `reset_pool` sets the
number of initial states drawn per rollout.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config.options import did_you_mean
from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.types import PyTree

IDS = (
    "Craftax-Symbolic-v1",
    "Craftax-Pixels-v1",
    "Craftax-Classic-Symbolic-v1",
    "Craftax-Classic-Pixels-v1",
)


@dataclasses.dataclass(frozen=True, eq=False)
class CraftaxEnv:
    """A craftax environment without automatic reset.

    Attributes:
        env: environment of craftax.
        params: EnvParams of the environment, which may be traced.
        name: id of the environment.
        observation_space: Box of [F] float32 or [H, W, 3] uint8.
        action_space: Discrete(17) in Craftax-Classic, Discrete(43) in Craftax.
    """

    env: Any
    params: Any
    name: str
    observation_space: spaces.Box
    action_space: spaces.Discrete

    @property
    def time_limit(self) -> int | None:
        """max_timesteps of craftax; None if it is traced."""
        limit = self.params.max_timesteps
        return None if isinstance(limit, jax.core.Tracer) else int(limit)

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start an episode in a new world: (obs, state)."""
        obs, state = self.env.reset_env(key, params)
        return self._observation(obs), state

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step. `done` of craftax does not distinguish a death from the time limit. The
        limit is raised by one step, so that `done` means a death."""
        later = params.replace(max_timesteps=params.max_timesteps + 1)
        obs, state, reward, terminated, _ = self.env.step_env(key, state, action, later)
        truncated = state.timestep >= params.max_timesteps
        reward = jnp.asarray(reward, jnp.float32)
        return self._observation(obs), state, reward, terminated, truncated, {}

    def _observation(self, obs: jax.Array) -> jax.Array:
        """Convert pixels in [0, 1] to bytes."""
        if self.observation_space.dtype == np.uint8:
            return jnp.round(jnp.clip(obs, 0.0, 1.0) * 255.0).astype(jnp.uint8)
        return obs


def names() -> list[str]:
    """Ids of the suite."""
    return list(IDS)


def make(env_id: str, **kwargs: Any) -> CraftaxEnv:
    """Make the environment that craftax has under this id.

    Args:
        env_id: id, one of IDS.
        **kwargs: fields of EnvParams of craftax; max_timesteps is the time limit.

    Raises:
        InvalidEnvironment: if there is no such parameter; the message suggests similar names.
    """
    from craftax.craftax_env import make_craftax_env_from_name

    env = make_craftax_env_from_name(env_id, auto_reset=False)
    params = env.default_params
    fields = [f.name for f in dataclasses.fields(params)]
    for name in kwargs:
        if name not in fields:
            raise InvalidEnvironment(
                f"craftax:{env_id} has no parameter {name!r}; {did_you_mean(name, fields)}"
            )
    shape = tuple(env.observation_space(params).shape)
    high, dtype = (255, np.uint8) if len(shape) == 3 else (1.0, np.float32)
    box = spaces.Box(0, high, shape, dtype)
    return CraftaxEnv(env, params.replace(**kwargs), env_id, box, spaces.Discrete(env.num_actions))
