"""The registry of environments: `make("suite:id")`, and objects of other libraries.

Names are resolved by `ppo_jax.suites`. Any other name with a colon, `my_module:MyEnv`, refers to an
environment of the user and is imported by that name.

Modules of suites are imported when they are needed, so that other suites need not be installed. The
module of a suite has `names()`, `make(env_id, **kwargs)`, and `has(env_id)` if it accepts more ids
than it lists.
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

# Suites whose modules also accept an environment object of their library: `recognizes(env)`
# detects one without importing the library, and `adapt(env)` converts it to an Env.
ADAPTING = ("gymnax", "gymnasium")
# Attributes of environment objects that a function or class that makes environments does not have.
ENVIRONMENTS = ("reset", "step_env", "vector", "single_observation_space")


def make(name: str, **kwargs: Any) -> Env:
    """Make an environment by name.

    Args:
        name: "suite:id", where the id is everything after the first colon, an id without a suite,
            or "module:Name" for a module that is not a suite.
        **kwargs: parameters of the environment.

    Raises:
        UnknownEnvironment: if there is no such environment, or its suite is not installed. The
            message suggests similar names, or the package to install.
        ConfigError: if the module cannot be imported.
        InvalidEnvironment: if the object with that name is not an environment.
    """
    suite, env_id = locate(name)
    if not suite:
        return as_env(references.resolve(env_id, "environment"), **kwargs)
    return module(suite).make(env_id, **kwargs)


def as_env(env: Any, **kwargs: Any) -> Env:
    """Convert an object to an environment: a name, an Env, a gymnax Environment, a Gymnasium
    vector environment, or a class or function that makes one of these or a Gymnasium environment.

    Args:
        env: object to convert.
        **kwargs: parameters of an environment that is made by name, or by a class or function.

    Raises:
        InvalidEnvironment: if the object is none of these; the message states what is missing.
    """
    if isinstance(env, str):
        return make(env, **kwargs)
    if isinstance(env, type) or (callable(env) and not any(hasattr(env, a) for a in ENVIRONMENTS)):
        return _made(env, kwargs)
    if kwargs:
        raise InvalidEnvironment(
            f"{getattr(env, 'name', type(env).__name__)} already exists and takes no arguments; "
            f"omit {', '.join(kwargs)}, or pass the class or function that makes the environment"
        )
    return _adapted(env)


def _made(maker: Any, kwargs: dict[str, Any]) -> Env:
    """The environment that a class or function makes."""
    gymnasium = importlib.import_module(SUITES["gymnasium"])  # Gymnasium need not be installed
    name = getattr(maker, "__name__", repr(maker))
    call = functools.partial(maker, **kwargs) if kwargs else maker
    # The arrays of the environment are constants, even inside a trace.
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
