"""Suite `playground`: the DeepMind Control Suite of MuJoCo Playground, on MJX.

The other two parts of Playground, locomotion and manipulation, download robot models and are left
out. The physics implementation is `impl="jax"`, because Playground's default, Warp, compiles for
minutes without a GPU and then fails.
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
    """Make the environment of dm_control with this id.

    Args:
        env_id: id, e.g. "CartpoleBalance".
        episode_length: number of steps after which an episode is truncated, or None for the 1000
            steps of Playground.
        **kwargs: fields of the environment's config, e.g. ctrl_dt.

    Raises:
        InvalidEnvironment: if a field is unknown to Playground, or observations are not one vector.
    """
    suite = _suite()
    try:
        env = suite.load(env_id, config_overrides={"impl": "jax", **kwargs})
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidEnvironment(f"playground:{env_id} cannot be made: {error}") from error
    obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    if not hasattr(obs, "shape"):
        raise InvalidEnvironment(
            f"playground:{env_id} observes {obs}; only vector observations are supported"
        )
    limit = episode_length or suite.get_default_config(env_id).episode_length
    # Episodes only end earlier if the physics diverges. If many do so in one rollout, some initial
    # states are used twice, and the metric reused_resets counts them.
    return PhysicsEnv(
        env,
        env_id,
        spaces.Box(-jnp.inf, jnp.inf, obs.shape),
        spaces.Box(-1.0, 1.0, (env.action_size,)),
        int(limit),
        int(limit),
    )
