"""Suite `playground`: the DeepMind Control Suite of MuJoCo Playground, on MJX.

Its other two parts, locomotion and manipulation, download their robots and are left out. The
physics is `impl="jax"`: Playground's default, Warp, takes minutes to compile without a GPU and then
does not run.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class PlaygroundEnv:
    """An environment of dm_control and a clock; its state is (Playground's State, steps taken).

    Attributes:
        env: mujoco_playground's MjxEnv.
        name: id.
        observation_space: Box.
        action_space: Box(−1, 1); actions are clipped to it.
        time_limit: steps after which an episode is truncated.
        params: ().
    """

    env: Any
    name: str
    observation_space: spaces.Box
    action_space: spaces.Box
    time_limit: int
    params: tuple[()] = ()

    @property
    def shortest_episode(self) -> int:
        """The limit: tasks end sooner only where the physics diverges, and should many do so at
        once a reset is used twice, which the metric reused_resets counts."""
        return self.time_limit

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """(obs, state) of a new episode."""
        state = self.env.reset(key)
        return state.obs, (state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """One transition; `done` of the task is termination, the clock truncation."""
        state, time = state
        state = self.env.step(state, jnp.clip(action, -1.0, 1.0))
        terminated, truncated = state.done > 0, time + 1 >= self.time_limit
        reward = jnp.asarray(state.reward, jnp.float32)
        return state.obs, (state, time + 1), reward, terminated, truncated, {}


@functools.cache
def _suite() -> ModuleType:
    from mujoco_playground import dm_control_suite

    return dm_control_suite


def names() -> list[str]:
    """Ids of the suite."""
    return list(_suite().ALL_ENVS)


def make(env_id: str, *, episode_length: int | None = None, **kwargs: Any) -> PlaygroundEnv:
    """The environment of dm_control with this id.

    Args:
        env_id: e.g. "CartpoleBalance".
        episode_length: steps after which an episode is truncated; None: Playground's own, 1000.
        **kwargs: fields of the environment's config, e.g. ctrl_dt.

    Raises:
        InvalidEnvironment: a field that Playground does not know; observations that are not one
            vector.
    """
    suite = _suite()
    try:
        env = suite.load(env_id, config_overrides={"impl": "jax", **kwargs})
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidEnvironment(f"playground:{env_id} cannot be made: {error}") from error
    obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    if not hasattr(obs, "shape"):
        raise InvalidEnvironment(f"playground:{env_id} observes {obs}; only vectors are served")
    limit = suite.get_default_config(env_id).episode_length
    return PlaygroundEnv(
        env,
        env_id,
        spaces.Box(-jnp.inf, jnp.inf, obs.shape),
        spaces.Box(-1.0, 1.0, (env.action_size,)),
        int(limit if episode_length is None else episode_length),
    )
