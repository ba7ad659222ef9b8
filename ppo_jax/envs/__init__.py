"""Environments: two protocols, one registry, one vectoriser."""

from ppo_jax.envs.host import HostEnv, HostVectorEnv, refuse_sweep
from ppo_jax.envs.protocol import (
    Env,
    InvalidEnvironment,
    VectorEnv,
    check_env,
    check_spaces,
    render,
)
from ppo_jax.envs.registry import (
    UnknownEnvironment,
    as_env,
    atari_game,
    canonical,
    is_own,
    make,
    names,
    suites,
)
from ppo_jax.envs.vectorize import vectorize

__all__ = [
    "Env",
    "HostEnv",
    "HostVectorEnv",
    "InvalidEnvironment",
    "UnknownEnvironment",
    "VectorEnv",
    "as_env",
    "atari_game",
    "canonical",
    "check_env",
    "check_spaces",
    "is_own",
    "make",
    "names",
    "refuse_sweep",
    "render",
    "suites",
    "vectorize",
]
