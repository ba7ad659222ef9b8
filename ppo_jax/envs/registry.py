"""`make("suite:id")`: one table of suites, and of what a bare id means."""

import importlib
from types import ModuleType
from typing import Any

from ppo_jax.envs.protocol import Env, check_env
from ppo_jax.types import did_you_mean

# A bare id belongs to the first suite that knows it. Modules are imported on demand: a suite that
# is not asked for costs nothing and need not be installed.
SUITES = {"ppo_jax": "ppo_jax.envs.native", "gymnax": "ppo_jax.envs.gymnax"}


class UnknownEnvironment(ValueError):
    """No suite has an environment of this name."""


def canonical(name: str) -> str:
    """The full name of an environment: "CartPole-v1" -> "gymnax:CartPole-v1".

    Raises:
        UnknownEnvironment: with the nearest names there are.
    """
    suite, colon, env_id = name.rpartition(":")
    if colon and suite not in SUITES:
        raise UnknownEnvironment(f"unknown suite {suite!r}; there are: {', '.join(SUITES)}")
    for candidate in [suite] if colon else SUITES:
        if env_id in _module(candidate).names():
            return f"{candidate}:{env_id}"
    known = [n.split(":")[1] for n in names()]
    raise UnknownEnvironment(f"unknown environment {name!r}; {did_you_mean(env_id, known)}")


def make(name: str, **kwargs: Any) -> Env:
    """An environment by name.

    Args:
        name: "suite:id", or an id alone.
        **kwargs: parameters of the environment.

    Raises:
        UnknownEnvironment: with the nearest names there are.
    """
    suite, env_id = canonical(name).split(":")
    return _module(suite).make(env_id, **kwargs)


def as_env(env: Any, **kwargs: Any) -> Env:
    """An environment from a name, an Env, or a gymnax Environment object.

    Args:
        env: any of these.
        **kwargs: parameters of one that is made by name.

    Raises:
        InvalidEnvironment: an object that is none of these; the message says what it lacks.
    """
    if isinstance(env, str):
        return make(env, **kwargs)
    from ppo_jax.envs import gymnax

    env = gymnax.adapt(env) if gymnax.is_gymnax(env) else env
    check_env(env)
    return env


def names() -> list[str]:
    """Every name that `make` knows, in full."""
    return [f"{suite}:{env_id}" for suite in SUITES for env_id in _module(suite).names()]


def _module(suite: str) -> ModuleType:
    return importlib.import_module(SUITES[suite])
