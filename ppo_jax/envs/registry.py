"""`make("suite:id")`: one table of suites, and of what a bare id means.

Modules are imported on demand: a suite that is not asked for costs nothing and need not be
installed. A module has `names()`, `make(env_id, **kwargs)`, and `has(env_id)` if it takes more ids
than it lists.
"""

import importlib
import importlib.util
import re
from types import ModuleType
from typing import Any

from ppo_jax.config.options import did_you_mean
from ppo_jax.envs.protocol import Env, check_env

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


class UnknownEnvironment(ValueError):
    """No suite has an environment of this name, or its suite is not installed."""


def canonical(name: str) -> str:
    """The full name of an environment: "CartPole-v1" -> "gymnax:CartPole-v1".

    Raises:
        UnknownEnvironment: with the nearest names there are, or with what to install.
    """
    return ":".join(_locate(name))


def make(name: str, **kwargs: Any) -> Env:
    """An environment by name.

    Args:
        name: "suite:id", or an id alone. What follows the first colon is the id, whatever is in it.
        **kwargs: parameters of the environment.

    Raises:
        UnknownEnvironment: with the nearest names there are, or with what to install.
    """
    suite, env_id = _locate(name)
    return _module(suite).make(env_id, **kwargs)


def as_env(env: Any, **kwargs: Any) -> Env:
    """An environment from a name, an Env, a gymnax Environment object, or what Gymnasium has: a
    vector environment, or a function that makes environments.

    Args:
        env: any of these.
        **kwargs: parameters of one that is made by name.

    Raises:
        InvalidEnvironment: an object that is none of these; the message says what it lacks.
    """
    if isinstance(env, str):
        return make(env, **kwargs)
    for adapter in (importlib.import_module(SUITES[suite]) for suite in ADAPTING):
        if adapter.recognizes(env):
            env = adapter.adapt(env)
            break
    check_env(env)
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
    """(suite, id)."""
    suite, colon, env_id = name.partition(":")
    if not colon:
        env_id = name
    bare = ("ale",) if ATARI.fullmatch(name) else BARE
    where = (suite,) if colon else bare
    for candidate in where:
        if _has(_module(candidate), env_id):
            return candidate, env_id
    known = [n.split(":", 1)[1] for n in names(*where)]
    raise UnknownEnvironment(f"unknown environment {name!r}; {did_you_mean(env_id, known)}")


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
