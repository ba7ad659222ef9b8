"""`make("suite:id")`: one table of suites, and of what a bare id means; everything else with a
colon, `my_module:MyEnv`, is the user's own and imported by that name.

Modules are imported on demand: a suite that is not asked for costs nothing and need not be
installed. A module has `names()`, `make(env_id, **kwargs)`, and `has(env_id)` if it takes more ids
than it lists.
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

# Suite -> the module of its adapter.
SUITES = {
    "ppo_jax": "ppo_jax.envs.native",
    "gymnax": "ppo_jax.envs.gymnax",
    # Pure JAX, each an optional extra.
    "brax": "ppo_jax.envs.brax",
    "playground": "ppo_jax.envs.playground",
    "navix": "ppo_jax.envs.navix",
    "xminigrid": "ppo_jax.envs.xminigrid",
    "craftax": "ppo_jax.envs.craftax",
    "jumanji": "ppo_jax.envs.jumanji",
    "pgx": "ppo_jax.envs.pgx",
    "jaxmarl": "ppo_jax.envs.jaxmarl",
    # On the host.
    "gymnasium": "ppo_jax.envs.gymnasium",
    "ale": "ppo_jax.envs.ale",
    "envpool": "ppo_jax.envs.envpool",
}
# Optional suite -> (the package its adapter imports, the extra that installs it).
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
# A bare id belongs to the first of these that knows it.
BARE = ("ppo_jax", "gymnax")
# Suites whose modules also take an environment object of their library: `recognizes(env)` says,
# without importing that library, whether it is one, and `adapt(env)` makes an Env of it.
ADAPTING = ("gymnax", "gymnasium")
# Ids that are Atari's by their form.
ATARI = re.compile(r"ALE/(\w+)-v5|(\w+)NoFrameskip-v4")
# What an object that is already an environment has, and a function or a class that makes them not.
ENVIRONMENTS = ("reset", "step_env", "vector", "single_observation_space")


class UnknownEnvironment(ValueError):
    """No suite has an environment of this name, or its suite is not installed."""


def canonical(name: str) -> str:
    """The full name of an environment: "CartPole-v1" -> "gymnax:CartPole-v1".

    One of the user's own has one name alone, and is not imported.

    Raises:
        UnknownEnvironment: with the nearest names there are, or with what to install.
    """
    suite, env_id = _locate(name)
    return f"{suite}:{env_id}" if suite else env_id


def is_own(name: str) -> bool:
    """Whether a name is that of no suite's environment: a reference `my_module:MyEnv`, or a text
    that stands for an object from Python. Nothing is imported to find out."""
    suite, colon, _ = name.partition(":")
    return references.is_text(name) or bool(colon and suite not in SUITES)


def names_code(name: str) -> bool:
    """Whether a name makes the process import a module that is neither in the package nor
    registered by an installed one: a reference, or Gymnasium's own "gymnasium:module:id"."""
    suite, _, env_id = name.partition(":")
    if references.is_text(name) or name in references.registered("environment"):
        return False
    return is_own(name) or (suite in OPTIONAL and ":" in env_id)


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
    suite, env_id = _locate(name)
    if not suite:
        return as_env(references.resolve(env_id, "environment"), **kwargs)
    return _module(suite).make(env_id, **kwargs)


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


def same_env(name: str, other: str) -> bool:
    """Whether two names are those of one environment, each with its suite or without.

    "CartPole-v1" and "gymnax:CartPole-v1" are. Atari's games have several names in their suite:
    "ale:Pong", "ALE/Pong-v5" and "PongNoFrameskip-v4" are one, "Pong" alone is another.

    Raises:
        UnknownEnvironment: the suite of one of them, which alone could tell, is not installed.
    """
    games = _atari_game(name), _atari_game(other)
    if games != (None, None):
        return games[0] == games[1]
    if name == other:
        return True
    bare, full = sorted((name, other), key=len)
    return full.endswith(f":{bare}") and full == canonical(bare)


def _atari_game(name: str) -> str | None:
    """ "Pong" of ALE/Pong-v5, PongNoFrameskip-v4 and ale:Pong; None for what is not Atari's by its
    name. Nothing is imported to find out."""
    env_id = name.removeprefix("ale:")
    match = ATARI.fullmatch(env_id)
    if match is not None:
        return match[1] or match[2]
    return env_id if env_id != name else None


def suites() -> dict[str, bool]:
    """Every suite, and whether it is installed; nothing is imported to find out."""
    return {suite: _installed(suite) for suite in SUITES}


def names(*asked: str) -> list[str]:
    """The full names in these suites; by default, in those that every installation has.

    Raises:
        UnknownEnvironment: no such suite, or one that is not installed.
    """
    return [f"{suite}:{env_id}" for suite in asked or BARE for env_id in _module(suite).names()]


def _locate(name: str) -> tuple[str, str]:
    """(suite, id); without a suite, ("", name), what is the user's own."""
    suite, colon, env_id = name.partition(":")
    if is_own(name):
        known = references.is_text(name) or name in references.registered("environment")
        if not known and not references.findable(suite):
            raise UnknownEnvironment(
                f"unknown suite {suite!r}; there are: {', '.join(SUITES)}; and there is no module "
                f"{suite!r} to import {env_id} from"
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
    """The adapter of a suite.

    Raises:
        UnknownEnvironment: no such suite, or one that is not installed.
    """
    if suite not in SUITES:
        raise UnknownEnvironment(f"unknown suite {suite!r}; there are: {', '.join(SUITES)}")
    if not _installed(suite):
        package, extra = OPTIONAL[suite]
        raise UnknownEnvironment(
            f"suite {suite!r} needs the package {package}, which is not installed; "
            f'pip install "ppo_jax[{extra}]"'
        )
    return importlib.import_module(SUITES[suite])
