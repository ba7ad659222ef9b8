"""Suite `playground`: the DeepMind Control Suite of MuJoCo Playground, on MJX.

Its other two parts, locomotion and manipulation, download their robots and are left out. The
physics is `impl="jax"`: Playground's default, Warp, takes minutes to compile without a GPU and then
does not run.
"""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.envs import spaces
from ppo_jax.envs.physics import PhysicsEnv
from ppo_jax.envs.protocol import InvalidEnvironment


@functools.cache
def _suite() -> ModuleType:
    from mujoco_playground import dm_control_suite

    return dm_control_suite


def names() -> list[str]:
    """Ids of the suite."""
    return list(_suite().ALL_ENVS)


def make(env_id: str, *, episode_length: int | None = None, **kwargs: Any) -> PhysicsEnv:
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
    limit = episode_length or suite.get_default_config(env_id).episode_length
    # Tasks end sooner only where the physics diverges; should many do so in one rollout, a reset is
    # used twice, which the metric reused_resets counts.
    return PhysicsEnv(
        env,
        env_id,
        spaces.Box(-jnp.inf, jnp.inf, obs.shape),
        spaces.Box(-1.0, 1.0, (env.action_size,)),
        int(limit),
        int(limit),
    )
