"""The words of a command line before they are parsed: flags that do not exist are refused here.

tyro would refuse them as well, in a box of many lines and without knowing the names that other
libraries use.
"""

import dataclasses
from collections.abc import Collection

from ppo_jax.algorithms.configs import CONFIGS
from ppo_jax.config import ConfigError, foreign

# Flags of tyro itself.
EXTRA = ("help", "tyro_print_completion", "tyro_write_completion")


def refuse_unknown(
    words: list[str], known: Collection[str], switches: Collection[str], program: str
) -> None:
    """Refuse a flag that the command does not have.

    Args:
        words: the command line.
        known: the options of the command.
        switches: those of them that are true or false, and have a flag --no-NAME as well.
        program: the command's name, for the message.

    Raises:
        ConfigError: the flag, and what to write instead.
    """
    allowed = {*known, *EXTRA, *(f"no_{name}" for name in switches)}
    for word in words:
        name = word[2:].partition("=")[0]
        if not word.startswith("--") or not name or name.replace("-", "_") in allowed:
            continue
        hint = foreign.hint(name, known, _algorithms())
        more = f"{program} --help lists all options"
        raise ConfigError(f"unknown option --{name}; {hint or more}")


def _algorithms() -> dict[str, set[str]]:
    """Algorithm -> its options."""
    return {name: {f.name for f in dataclasses.fields(c)} for name, c in CONFIGS.items()}
