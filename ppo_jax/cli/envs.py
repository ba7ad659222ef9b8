"""`ppo-jax envs [SUITE]`: the suites of environments, or the environments of one suite."""

import sys
from typing import NoReturn

from ppo_jax import suites
from ppo_jax.cli import listing
from ppo_jax.cli.errors import exit_without_device
from ppo_jax.config import installation
from ppo_jax.config.errors import UnknownEnvironment, did_you_mean
from ppo_jax.config.presets import PRESETS
from ppo_jax.runs import terminal

PROGRAM = "ppo-jax envs"
DOC = f"""usage: {PROGRAM} [SUITE]

List the suites of environments, or the environments of one suite.

An environment is named SUITE:ID, as in `ppo-jax train --env gymnasium:LunarLander-v3`. The suites
ppo_jax and gymnax may be left out: `--env Pendulum-v1`. An environment of your own is named
MODULE:NAME."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax envs`."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_without_device(lambda: _list(words))


def _list(words: list[str]) -> int:
    if not listing.only_help(words, PROGRAM, DOC, most=1):
        if words:
            _list_suite(words[0])
        else:
            _list_suites()
    return 0


def _list_suites() -> None:
    """One line for each suite, the installed ones first."""
    found = suites.catalog()
    rows: listing.Rows = []
    for suite, about in suites.ABOUT.items():
        missing = suites.missing_requirement(suite)
        state = f"needs {_words(missing)}" if missing else "installed"
        rows.append((suite, str(len(found[suite]) or ""), state, about))
    listing.show(sorted(rows, key=lambda row: row[2] != "installed"))
    terminal.say(listing.wrapped("\n`ppo-jax envs SUITE` lists the environments of a suite."))
    _show_commands([*filter(None, map(suites.missing_requirement, suites.ABOUT))][:1])


def _list_suite(suite: str) -> None:
    """One line for each environment: the name that --env takes, and its preset."""
    suite = suites.ALIASES.get(suite.lower(), suite)
    if suite not in suites.SUITES:
        found = [
            suites.how_to_use(*place)
            for place in suites.elsewhere(suite.partition(":")[2] or suite)
        ]
        hint = "; ".join(found) or did_you_mean(suite, suites.SUITES)
        raise UnknownEnvironment(f"unknown suite {suite!r}; {hint}")
    ids = suites.catalog()[suite] or tuple(suites.module(suite).names())
    presets, needed = _presets(), set[str]()
    rows: listing.Rows = []
    for env_id in ids:
        name = env_id if suite in suites.BARE else f"{suite}:{env_id}"
        missing = suites.missing_requirement(suite, env_id)
        needed |= {missing} - {""}
        notes = [f"preset {presets[name]}"] if name in presets else []
        notes += [f"needs {_words(missing)}"] if missing else []
        rows.append((name, ", ".join(notes)))
    listing.show(rows)
    if needed:
        terminal.say("")
    _show_commands(sorted(needed))


def _words(requirement: str) -> str:
    """A requirement in words."""
    return f"the extra {requirement[1:-1]}" if requirement.startswith("[") else requirement


def _show_commands(requirements: list[str]) -> None:
    """Print the commands that install requirements."""
    for name in requirements:
        terminal.say(f"  # installs {_words(name)}\n  {installation.command(name)}")


def _presets() -> dict[str, str]:
    """Environment -> its default preset for PPO, which is the first one."""
    return {v["env"]: name for name, v in reversed(PRESETS.items()) if v["algorithm"] == "ppo"}
