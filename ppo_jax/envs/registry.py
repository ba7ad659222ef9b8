"""The registry of environments: `make("suite:id")`, and ids without a suite.

Any other name with a colon, `my_module:MyEnv`, refers to an environment of the user and is imported
by that name. Modules of suites are imported when they are needed, so that other suites need not be
installed. The module of a suite has `names()`, `make(env_id, **kwargs)`, and `has(env_id)` if it
accepts more ids than it lists.
"""

import functools
import importlib
import importlib.util
import re
from types import ModuleType
from typing import Any

import jax

import ppo_jax.config.references as references
from ppo_jax.config.options import did_you_mean
from ppo_jax.envs.protocol import Env, InvalidEnvironment, check_protocol

# Name of a suite -> module of its adapter.
SUITES = {
    "ppo_jax": "ppo_jax.envs.native",
    "gymnax": "ppo_jax.envs.gymnax",
    # Suites in pure JAX, each of which is an optional extra.
    "brax": "ppo_jax.envs.brax",
    "playground": "ppo_jax.envs.playground",
    "navix": "ppo_jax.envs.navix",
    "xminigrid": "ppo_jax.envs.xminigrid",
    "craftax": "ppo_jax.envs.craftax",
    "jumanji": "ppo_jax.envs.jumanji",
    "pgx": "ppo_jax.envs.pgx",
    "jaxmarl": "ppo_jax.envs.jaxmarl",
    # Environments on the host.
    "gymnasium": "ppo_jax.envs.gymnasium",
    "ale": "ppo_jax.envs.ale",
    "envpool": "ppo_jax.envs.envpool",
}
# Name of an optional suite -> (package that its adapter imports, extra that installs it).
OPTIONAL = {
    "brax": ("brax", "brax"),
    "playground": ("mujoco_playground", "playground"),
    "navix": ("navix", "navix"),
    "xminigrid": ("xminigrid", "xminigrid"),
    "craftax": ("craftax", "craftax"),
    "jumanji": ("jumanji", "jumanji"),
    "pgx": ("pgx", "pgx"),
    "jaxmarl": ("jaxmarl", "jaxmarl"),
    "gymnasium": ("gymnasium", "gymnasium"),
    "ale": ("ale_py", "atari"),
    "envpool": ("envpool", "envpool"),
}
# An id without a suite belongs to the first of these suites that contains it.
BARE = ("ppo_jax", "gymnax")
# Suites whose modules also accept an environment object of their library: `recognizes(env)`
# detects one without importing the library, and `adapt(env)` converts it to an Env.
ADAPTING = ("gymnax", "gymnasium")
# Ids that have the form of Atari ids.
ATARI = re.compile(r"ALE/(\w+)-v5|(\w+)NoFrameskip-v4")
# Attributes of environment objects that a function or class that makes environments does not have.
ENVIRONMENTS = ("reset", "step_env", "vector", "single_observation_space")


class UnknownEnvironment(ValueError):
    """An environment that no suite contains, or whose suite is not installed."""


def canonical(name: str) -> str:
    """The full name of an environment: "CartPole-v1" -> "gymnax:CartPole-v1".

    The name of a custom environment is returned unchanged, without importing it.

    Raises:
        UnknownEnvironment: if there is no such environment, or its suite is not installed. The
            message suggests similar names, or the package to install.
    """
    suite, env_id = _locate(name)
    return f"{suite}:{env_id}" if suite else env_id


def is_own(name: str) -> bool:
    """Whether a name refers to a custom environment: a reference `my_module:MyEnv`, or the text
    that stands for a Python object. Nothing is imported for this check."""
    suite, colon, _ = name.partition(":")
    return references.is_text(name) or bool(colon and suite not in SUITES)


def names_code(name: str) -> bool:
    """Whether a name refers to a module that is neither in the package nor registered by an
    installed package: a reference, or Gymnasium's "gymnasium:module:id"."""
    suite, _, env_id = name.partition(":")
    if references.is_text(name) or name in references.registered("environment"):
        return False
    return is_own(name) or (suite in OPTIONAL and ":" in env_id)


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
    suite, env_id = _locate(name)
    if not suite:
        return as_env(references.resolve(env_id, "environment"), **kwargs)
    return _module(suite).make(env_id, **kwargs)


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


def same_env(name: str, other: str) -> bool:
    """Whether two names, with or without a suite, refer to the same environment.

    An example is "CartPole-v1" and "gymnax:CartPole-v1". Atari games have several names in their
    suite: "ale:Pong", "ALE/Pong-v5" and "PongNoFrameskip-v4" are the same, but "Pong" is another.

    Raises:
        UnknownEnvironment: if the answer depends on a suite that is not installed.
    """
    games = _atari_game(name), _atari_game(other)
    if games != (None, None):
        return games[0] == games[1]
    if name == other:
        return True
    bare, full = sorted((name, other), key=len)
    return full.endswith(f":{bare}") and full == canonical(bare)


def _atari_game(name: str) -> str | None:
    """ "Pong" for ALE/Pong-v5, PongNoFrameskip-v4 and ale:Pong; None for a name that is not one of
    Atari. Nothing is imported."""
    env_id = name.removeprefix("ale:")
    match = ATARI.fullmatch(env_id)
    if match is not None:
        return match[1] or match[2]
    return env_id if env_id != name else None


def suites() -> dict[str, bool]:
    """Every suite, and whether it is installed; nothing is imported."""
    return {suite: _installed(suite) for suite in SUITES}


def names(*asked: str) -> list[str]:
    """The full names of the environments in these suites; by default, in those always installed.

    Raises:
        UnknownEnvironment: if a suite does not exist or is not installed.
    """
    return [f"{suite}:{env_id}" for suite in asked or BARE for env_id in _module(suite).names()]


def _locate(name: str) -> tuple[str, str]:
    """(suite, id) of a name; ("", name) for a custom environment."""
    suite, colon, env_id = name.partition(":")
    if is_own(name):
        known = references.is_text(name) or name in references.registered("environment")
        if not known and not references.findable(suite):
            raise UnknownEnvironment(
                f"unknown suite {suite!r}; the suites are: {', '.join(SUITES)}; there is also no "
                f"module {suite!r} from which {env_id} could be imported"
            )
        return "", name
    if not colon:
        env_id = name
    bare = ("ale",) if ATARI.fullmatch(name) else BARE
    where = (suite,) if colon else bare
    for candidate in where:
        if _has(_module(candidate), env_id):
            return candidate, env_id
    registered = references.registered("environment")
    if name in registered:
        return "", name
    near = [n.split(":", 1)[1] for n in names(*where)] + ([] if colon else [*registered])
    raise UnknownEnvironment(f"unknown environment {name!r}; {did_you_mean(env_id, near)}")


def _has(module: ModuleType, env_id: str) -> bool:
    return bool(module.has(env_id)) if hasattr(module, "has") else env_id in module.names()


def _installed(suite: str) -> bool:
    return suite not in OPTIONAL or importlib.util.find_spec(OPTIONAL[suite][0]) is not None


def _module(suite: str) -> ModuleType:
    """The module of a suite.

    Raises:
        UnknownEnvironment: if the suite does not exist or is not installed.
    """
    if suite not in SUITES:
        raise UnknownEnvironment(f"unknown suite {suite!r}; the suites are: {', '.join(SUITES)}")
    if not _installed(suite):
        package, extra = OPTIONAL[suite]
        raise UnknownEnvironment(
            f"suite {suite!r} requires the package {package}, which is not installed; "
            f'pip install "ppo_jax[{extra}]"'
        )
    return importlib.import_module(SUITES[suite])
