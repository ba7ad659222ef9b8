"""Environments: protocols, registry, vectorisation and checks."""

from ppo_jax.envs.check import Report, check_env, find_problems
from ppo_jax.envs.host import HostEnv, HostVectorEnv, refuse_sweep
from ppo_jax.envs.protocol import (
    Env,
    InvalidEnvironment,
    VectorEnv,
    VectorMaker,
    check_protocol,
    check_spaces,
    makes_vectors,
    render,
)
from ppo_jax.envs.registry import (
    UnknownEnvironment,
    as_env,
    canonical,
    is_own,
    make,
    names,
    same_env,
    suites,
)
from ppo_jax.envs.stagger import staggered
from ppo_jax.envs.vectorize import vectorize

__all__ = [
    "Env",
    "HostEnv",
    "HostVectorEnv",
    "InvalidEnvironment",
    "Report",
    "UnknownEnvironment",
    "VectorEnv",
    "VectorMaker",
    "as_env",
    "canonical",
    "check_env",
    "check_protocol",
    "check_spaces",
    "find_problems",
    "is_own",
    "make",
    "makes_vectors",
    "names",
    "refuse_sweep",
    "render",
    "same_env",
    "staggered",
    "suites",
    "vectorize",
]
