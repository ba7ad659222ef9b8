"""The words of a command line before they are parsed: what cannot be meant is refused here.

tyro would refuse it as well, but in a box of many lines, and without the names that other libraries
use.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ppo_jax.algorithms.configs import CONFIGS
from ppo_jax.config import ConfigError, foreign
from ppo_jax.config.options import kind, whole

# Flags of tyro itself.
EXTRA = ("help", "tyro_print_completion", "tyro_write_completion")
NUMBERS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (whole, "a whole number"),
    float: (float, "a number"),
}


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


def refuse_values(words: list[str], fields: dict[str, Any]) -> None:
    """Refuse a value that is not a number, or not among the choices, where there must be one.

    Args:
        words: the command line.
        fields: name -> field of every option.

    Raises:
        ConfigError: the flag, the value, and what is allowed.
    """
    for name, values in _given(words):
        field = fields.get(name)
        if field is None or kind(field).base is bool:
            continue
        if not values and not kind(field).several:
            raise ConfigError(f"{foreign.flag(name)} needs a value")
        for value in values if kind(field).several else values[:1]:
            _check(field, name, value)


def _check(field: Any, name: str, value: str) -> None:
    """Refuse one value of an option."""
    wanted, bounds = kind(field), field.metadata["bounds"]
    if wanted.scheduled or (wanted.optional and value.lower() == "none"):
        return
    given = f"{foreign.flag(name)} is {value!r}; it must be"
    if bounds.choices is not None and not bounds.admits(value):
        raise ConfigError(f"{given} {bounds}")
    if wanted.base not in NUMBERS:
        return
    read, words = NUMBERS[wanted.base]
    try:
        read(value)
    except ValueError as error:
        allowed = "" if str(bounds) == "finite" else f" {bounds}"
        raise ConfigError(f"{given} {words}{allowed}") from error


def _given(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(option, its values) of each flag on a command line."""
    flags = [k for k, word in enumerate(words) if word.startswith("--")]
    for k, end in itertools.pairwise([*flags, len(words)]):
        name, equals, value = words[k][2:].partition("=")
        yield name.replace("-", "_"), [value] if equals else [*words[k + 1 : end]]


def _algorithms() -> dict[str, set[str]]:
    """Algorithm -> its options."""
    return {name: {f.name for f in dataclasses.fields(c)} for name, c in CONFIGS.items()}
