"""Suite `brax`: rigid-body control, all environments of brax 0.14 without their wrappers.

AutoResetWrapper of brax always resets to the same initial state and overwrites the final
observation, and InvertedPendulum reports its termination as `time_out`. Therefore the environments
are used without wrappers, and this package counts the time limit.
"""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.config.options import did_you_mean
from ppo_jax.envs import spaces
from ppo_jax.envs.physics import PhysicsEnv
from ppo_jax.envs.protocol import InvalidEnvironment

BACKENDS = ("spring", "positional", "generalized", "mjx")
# Environments whose episodes only end at the time limit.
ENDLESS = ("fast", "halfcheetah", "humanoidstandup", "pusher", "reacher", "swimmer")


@functools.cache
def _brax() -> ModuleType:
    from brax import envs

    return envs


def names() -> list[str]:
    """Ids of the suite."""
    return list(_brax()._envs)


def make(
    env_id: str, *, backend: str | None = None, episode_length: int = 1000, **kwargs: Any
) -> PhysicsEnv:
    """Make the environment that brax registers under this id.

    Args:
        env_id: id, e.g. "ant".
        backend: name in BACKENDS. None stands for spring, which is faster than generalized and mjx
            on a CPU, and for generalized for swimmer, which supports no other. Returns of different
            backends are not comparable.
        episode_length: number of steps after which an episode is truncated.
        **kwargs: arguments of brax's constructor, e.g. terminate_when_unhealthy.

    Raises:
        InvalidEnvironment: if brax rejects the arguments, or for swimmer, which uses an argument
            of jnp.clip that jax 0.10 has removed.
    """
    if backend is None:
        backend = "generalized" if env_id == "swimmer" else "spring"
    if backend not in BACKENDS:
        raise InvalidEnvironment(f"unknown backend {backend!r}; {did_you_mean(backend, BACKENDS)}")
    try:
        env = _brax().get_environment(env_id, backend=backend, **kwargs)
        obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    except (TypeError, ValueError) as error:
        raise InvalidEnvironment(f"brax:{env_id} cannot be made: {error}") from error
    if not hasattr(obs, "shape"):
        raise InvalidEnvironment(f"brax:{env_id} must observe one vector, but observes {obs}")
    return PhysicsEnv(
        env,
        env_id,
        spaces.Box(-jnp.inf, jnp.inf, obs.shape),
        spaces.Box(-1.0, 1.0, (env.action_size,)),
        episode_length,
        episode_length if env_id in ENDLESS else 1,
    )
