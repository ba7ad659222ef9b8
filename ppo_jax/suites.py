"""The suites of environments, the IDs in each of them, and the meaning of an ID without a suite.

Nothing here imports JAX, and a suite is imported only where its own list is needed: the file
`envs/catalog.txt` lists the IDs of every suite. An ID that is given without a suite is looked up in
the suites that every installation has. Where only another suite has it, the error names that suite
and the flag to use.
"""

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import ppo_jax.config.references as references
from ppo_jax.config import installation
from ppo_jax.config.errors import UnknownEnvironment, did_you_mean

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
    # Python environments, stepped on the host.
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
# Name of a suite -> short description.
ABOUT = {
    "ppo_jax": "Pong and two variants of CartPole, in pure JAX",
    "gymnax": "classic control, bsuite, MinAtar and more, in pure JAX",
    "brax": "robots in Brax's physics, in pure JAX",
    "playground": "robots in MuJoCo XLA, in pure JAX",
    "navix": "MiniGrid, in pure JAX",
    "xminigrid": "XLand-MiniGrid, in pure JAX",
    "craftax": "Craftax and Craftax-Classic, in pure JAX",
    "jumanji": "combinatorial problems and games, in pure JAX",
    "pgx": "board games and card games, in pure JAX",
    "jaxmarl": "several agents that share a reward, in pure JAX",
    "gymnasium": "classic control, Box2D and MuJoCo, in Python",
    "ale": "Atari 2600 games, emulated on the CPU",
    "envpool": "Atari and others, in a C++ thread pool",
}
# Other names of suites, which `ppo-jax envs` takes as well.
ALIASES = {
    "atari": "ale",
    "gym": "gymnasium",
    "mujoco": "gymnasium",
    "box2d": "gymnasium",
    "mjx": "playground",
    "minigrid": "navix",
}
# An ID without a suite belongs to the first of these suites that contains it.
BARE = ("ppo_jax", "gymnax")
# IDs that have the form of Atari IDs.
ATARI = re.compile(r"ALE/(\w+)-v5|(\w+)NoFrameskip-v4")
# Gymnasium environments that require a further package: (package, requirement to install).
BOX2D = ("Box2D", "[box2d]")
MUJOCO = ("mujoco", "gymnasium[mujoco]")
NEEDS = {
    **dict.fromkeys(
        ("LunarLander", "LunarLanderContinuous", "BipedalWalker", "BipedalWalkerHardcore",
         "CarRacing"), BOX2D,
    ),
    **dict.fromkeys(
        ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum",
         "InvertedPendulum", "Pusher", "Reacher", "Swimmer", "Walker2d"), MUJOCO,
    ),
}  # fmt: skip
# Maximum number of suggestions in one message.
SUGGESTIONS = 3
CATALOG = Path(__file__).parent / "envs" / "catalog.txt"


@functools.cache
def catalog() -> dict[str, tuple[str, ...]]:
    """The IDs of each suite, in the versions of the suites that the package was written for."""
    found: dict[str, list[str]] = {suite: [] for suite in SUITES}
    for line in _lines():
        if line and not line.startswith("#"):
            suite, _, env_id = line.partition(":")
            found[suite].append(env_id)
    return {suite: tuple(ids) for suite, ids in found.items()}


def canonical(name: str) -> str:
    """The full name of an environment: "CartPole-v1" -> "gymnax:CartPole-v1".

    The name of a custom environment is returned unchanged, without importing it.

    Raises:
        UnknownEnvironment: if there is no such environment, or its suite is not installed.
    """
    suite, env_id = locate(name)
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
    return {suite: installed(suite) for suite in SUITES}


def names(*given: str) -> list[str]:
    """The full names of the environments in these suites; by default, in those always installed.

    Raises:
        UnknownEnvironment: if a suite does not exist or is not installed.
    """
    return [f"{suite}:{env_id}" for suite in given or BARE for env_id in module(suite).names()]


def locate(name: str) -> tuple[str, str]:
    """(suite, id) of a name; ("", name) for a custom environment.

    Raises:
        UnknownEnvironment: if there is no such environment, or its suite is not installed.
    """
    suite, colon, env_id = name.partition(":")
    _refuse_incomplete(name)
    if is_own(name):
        references.refuse_file(name, "environment")
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
        if _has(candidate, env_id):
            return candidate, env_id
    if name in references.registered("environment"):
        return "", name
    raise UnknownEnvironment(f"unknown environment {name!r}; {_hint(env_id, where, bool(colon))}")


def _refuse_incomplete(name: str) -> None:
    """Refuse the name of a suite without an ID, and another name of a suite before an ID."""
    suite, _, env_id = name.partition(":")
    if name in references.registered("environment"):
        return
    suite = ALIASES.get(suite, suite)
    if suite in SUITES and not env_id:
        raise UnknownEnvironment(
            f"{name!r} names a suite and no environment; `ppo-jax envs {suite}` lists its "
            "environments"
        )
    if name.partition(":")[0] in ALIASES:
        same = [i for i in catalog()[suite] if _base(i) == _base(env_id)]
        if same:
            found = env_id if env_id in same else same[-1]
            raise UnknownEnvironment(f"unknown environment {name!r}; {how_to_use(suite, found)}")


def check(name: str) -> None:
    """Reject the name of an unknown environment, without importing an optional suite.

    Args:
        name: name of the environment, as for `canonical`.

    Raises:
        UnknownEnvironment: if there is no such environment, or its suite is not installed.
    """
    suite = "ale" if ATARI.fullmatch(name) else name.partition(":")[0]
    if suite not in OPTIONAL or name.rstrip(":") == suite:
        locate(name)
    elif not installed(suite):
        module(suite)


def _hint(env_id: str, where: tuple[str, ...], in_suite: bool) -> str:
    """A suggestion for an ID that the suites `where` do not contain."""
    own = [i for suite in where for i in _ids(suite)]
    if in_suite:
        return did_you_mean(env_id, own)
    found = elsewhere(env_id)
    wrong_version = _version(env_id) and all(_version(i) != _version(env_id) for _, i in found)
    bare = [i for suite, i in found if suite in BARE]
    if found and not (wrong_version and bare):
        same = [(suite, i) for suite in where for i in _ids(suite) if _base(i) == _base(env_id)]
        first = [] if bare else same[-1:]  # another version, which needs no suite
        return "; ".join(how_to_use(suite, i) for suite, i in first + found)
    near = difflib.get_close_matches(
        env_id, [*own, *references.registered("environment")], n=SUGGESTIONS, cutoff=0.7
    )
    if near:
        return f"did you mean {' or '.join(near)}?"
    everywhere = {i: s for s, ids in reversed(catalog().items()) for i in ids}
    others = difflib.get_close_matches(env_id, everywhere, n=SUGGESTIONS, cutoff=0.7)
    if others:
        return "; ".join(how_to_use(everywhere[i], i) for i in others)
    return "`ppo-jax envs` lists the suites and their environments"


def elsewhere(env_id: str) -> list[tuple[str, str]]:
    """(suite, ID) of the environments whose ID is this one, or differs in its version, in upper and
    lower case, or in the prefix that its suite gives all IDs; the nearest first."""
    found = []
    for order, (suite, ids) in enumerate(catalog().items()):
        same = [i for i in ids if _base(i) == _base(env_id)]
        exact = [i for i in same if i == env_id]
        version = [i for i in same if _version(i) == _version(env_id)]
        best = exact or version or same[-1:]  # the newest version is the last
        found += [(i != env_id, i.lower() != env_id.lower(), order, suite, i) for i in best[:1]]
    ranked = sorted(found)
    if any(not differs for differs, *_ in ranked):
        ranked = [entry for entry in ranked if not entry[0]]
    return [(suite, i) for *_, suite, i in ranked[:SUGGESTIONS]]


def how_to_use(suite: str, env_id: str) -> str:
    """The suite of an environment, the flag that selects it, and the package to install first."""
    name = env_id if suite in BARE else f"{suite}:{env_id}"
    missing = missing_requirement(suite, env_id)
    first = f" (install it first: {installation.command(missing)})" if missing else ""
    return f"suite {suite} has {env_id}: use --env {name}{first}"


def missing_requirement(suite: str, env_id: str = "") -> str:
    """The requirement of an environment that is not installed, as `installation.command` takes it:
    "[brax]" for an extra of ppo_jax; "" if nothing is missing."""
    if suite == "gymnasium" and _plain(env_id) in NEEDS:
        package, needed = NEEDS[_plain(env_id)]
        return "" if installed(suite) and importlib.util.find_spec(package) else needed
    return "" if installed(suite) else f"[{OPTIONAL[suite][1]}]"


def _plain(env_id: str) -> str:
    """An ID of Gymnasium without its version."""
    return env_id.rpartition("-v")[0] or env_id


def _base(env_id: str) -> str:
    """The part of an ID that is common to its versions, and to similar IDs in other suites."""
    text = re.sub(r"^(ALE/|Navix-|MiniGrid-)", "", env_id)
    text = re.sub(r"(NoFrameskip|Deterministic)?-(v\d+|MinAtar|minatar|bsuite|misc)$", "", text)
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _version(env_id: str) -> str:
    found = re.search(r"-(v\d+)$", env_id)
    return found[1] if found else ""


def _ids(suite: str) -> list[str]:
    """The IDs of a suite, from the catalog if it describes the installed version."""
    return [*catalog()[suite]] if _is_current(suite) else module(suite).names()


@functools.cache
def _is_current(suite: str) -> bool:
    """Whether the catalog describes the installed version of a suite. This is only known of the
    suites that are always installed, whose versions the package pins."""
    if suite == "ppo_jax":
        return True
    if suite != "gymnax":
        return False
    try:
        version = importlib.metadata.version("gymnax")
    except importlib.metadata.PackageNotFoundError:
        return False
    return f"# gymnax {version}" in _lines()


def _lines() -> list[str]:
    return CATALOG.read_text(encoding="utf-8").splitlines()


def _has(suite: str, env_id: str) -> bool:
    if _is_current(suite):
        return env_id in catalog()[suite]
    adapter = module(suite)
    return bool(adapter.has(env_id)) if hasattr(adapter, "has") else env_id in adapter.names()


def installed(suite: str) -> bool:
    """Whether the package of a suite is installed; nothing is imported."""
    return suite not in OPTIONAL or importlib.util.find_spec(OPTIONAL[suite][0]) is not None


def module(suite: str) -> ModuleType:
    """The module of a suite.

    Raises:
        UnknownEnvironment: if a suite does not exist or is not installed.
    """
    if suite not in SUITES:
        raise UnknownEnvironment(f"unknown suite {suite!r}; there are: {', '.join(SUITES)}")
    if not installed(suite):
        package, extra = OPTIONAL[suite]
        raise UnknownEnvironment(
            f"suite {suite!r} needs the package {package}, which is not installed; install it "
            f"with: {installation.command(f'[{extra}]')}"
        )
    return importlib.import_module(SUITES[suite])
