"""`make("suite:id")`: environments by name, and from the objects of other libraries.

The names are those of `ppo_jax.suites`; everything else with a colon, `my_module:MyEnv`, is an
environment of the user's own and imported by that name.

Modules are imported on demand: a suite that is not used costs nothing and need not be installed. A
module has `names()`, `make(env_id, **kwargs)`, and `has(env_id)` if it takes more IDs than it
lists.
"""

import functools
import importlib
from typing import Any

import jax

import ppo_jax.config.references as references
from ppo_jax.config.errors import UnknownEnvironment as UnknownEnvironment
from ppo_jax.envs.protocol import Env, InvalidEnvironment, check_protocol
from ppo_jax.suites import BARE as BARE
from ppo_jax.suites import OPTIONAL as OPTIONAL
from ppo_jax.suites import SUITES, locate, module
from ppo_jax.suites import canonical as canonical
from ppo_jax.suites import is_own as is_own
from ppo_jax.suites import names as names
from ppo_jax.suites import names_code as names_code
from ppo_jax.suites import same_env as same_env
from ppo_jax.suites import suites as suites

# Suites whose modules also take an environment object of their library: `recognizes(env)` tells,
# without importing that library, whether it is one, and `adapt(env)` makes an Env of it.
ADAPTING = ("gymnax", "gymnasium")
# What an object that is already an environment has, and a function or a class that makes them not.
ENVIRONMENTS = ("reset", "step_env", "vector", "single_observation_space")


def make(name: str, **kwargs: Any) -> Env:
    """An environment by name.

    Args:
        name: "suite:id", or an id alone. What follows the first colon is the id, whatever is in it.
            Or "module:Name", of a module that is not a suite's.
        **kwargs: parameters of the environment.

    Raises:
        UnknownEnvironment: with the nearest names there are, or with what to install.
        ConfigError: a module that cannot be imported, and why.
        InvalidEnvironment: what it has under that name is no environment.
    """
    suite, env_id = locate(name)
    if not suite:
        return as_env(references.resolve(env_id, "environment"), **kwargs)
    return module(suite).make(env_id, **kwargs)


def as_env(env: Any, **kwargs: Any) -> Env:
    """An environment from a name, an Env, a gymnax Environment object, a Gymnasium vector
    environment, or a class or function that makes one of these or a Gymnasium environment.

    Args:
        env: any of these.
        **kwargs: parameters of one that is made by name, or by a class or function.

    Raises:
        InvalidEnvironment: an object that is none of these; the message says what it lacks.
    """
    if isinstance(env, str):
        return make(env, **kwargs)
    if isinstance(env, type) or (callable(env) and not any(hasattr(env, a) for a in ENVIRONMENTS)):
        return _made(env, kwargs)
    if kwargs:
        raise InvalidEnvironment(
            f"{getattr(env, 'name', type(env).__name__)} is made already and takes no arguments; "
            f"leave out {', '.join(kwargs)}, or name the class or function that makes it"
        )
    return _adapted(env)


def _made(maker: Any, kwargs: dict[str, Any]) -> Env:
    """The environment that a class or a function makes."""
    gymnasium = importlib.import_module(SUITES["gymnasium"])  # which need not be installed
    name = getattr(maker, "__name__", repr(maker))
    call = functools.partial(maker, **kwargs) if kwargs else maker
    # Its arrays are constants, also where a run is being traced.
    with jax.ensure_compile_time_eval():
        first = gymnasium.first_of(call, name)
    own = hasattr(first, "reset") and not hasattr(first, "unwrapped")
    if own and not gymnasium.recognizes(first):
        return _adapted(first)
    host: Any = gymnasium.adapt(call, first)
    check_protocol(host)
    return host


def _adapted(env: Any) -> Env:
    for adapter in (importlib.import_module(SUITES[suite]) for suite in ADAPTING):
        if adapter.recognizes(env):
            env = adapter.adapt(env)
            break
    check_protocol(env)
    return env
