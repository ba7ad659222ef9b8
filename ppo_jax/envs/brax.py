"""Suite `brax`: rigid bodies, every environment of brax 0.14 without its wrappers.

brax's AutoResetWrapper replays one fixed first state and overwrites the last observation, and the
`time_out` that InvertedPendulum reports is its termination; so the bare physics is used, and the
time limit is counted here.
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
# Nothing but the time limit ends these.
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
    """The environment brax registers under this id.

    Args:
        env_id: e.g. "ant".
        backend: one of BACKENDS. None: spring, three to four times as fast as generalized and mjx
            on a CPU; generalized for swimmer, which has no other. Returns of different backends
            do not compare.
        episode_length: steps after which an episode is truncated.
        **kwargs: of brax's constructor, e.g. terminate_when_unhealthy.

    Raises:
        InvalidEnvironment: arguments that brax refuses, and what it says; swimmer, which calls a
            jnp.clip that jax 0.10 no longer has.
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
        raise InvalidEnvironment(f"brax:{env_id} has no vector of observations but {obs}")
    return PhysicsEnv(
        env,
        env_id,
        spaces.Box(-jnp.inf, jnp.inf, obs.shape),
        spaces.Box(-1.0, 1.0, (env.action_size,)),
        episode_length,
        episode_length if env_id in ENDLESS else 1,
    )
