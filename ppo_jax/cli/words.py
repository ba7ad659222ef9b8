"""The words of a command line before they are parsed: what cannot be meant is refused here.

tyro would refuse it as well, but in a box of many lines, and without the names that other libraries
use.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, get_args, get_origin

from ppo_jax import suites
from ppo_jax.algorithms.configs import CONFIGS
from ppo_jax.config import ConfigError, TrainConfig, foreign
from ppo_jax.config.options import SCHEDULED, kind, means_none, whole
from ppo_jax.config.presets import PRESETS

# Flags of tyro itself.
EXTRA = ("help", "tyro_print_completion", "tyro_write_completion")
# A name with a single dash, such as -lr; not a negative number.
SINGLE = re.compile(r"-(?!inf$|nan$)[A-Za-z][\w-]*")
TRUTH = ("true", "false", "yes", "no", "on", "off", "0", "1")
NUMBERS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (whole, "a whole number"),
    float: (float, "a number"),
}


def refuse_unknown(
    words: list[str],
    known: Collection[str],
    switches: Collection[str],
    program: str,
    *,
    algorithms: bool = False,
) -> None:
    """Refuse a flag that the command does not have.

    Args:
        words: the command line.
        known: the options of the command.
        switches: those of them that are true or false, and have a flag --no-NAME as well.
        program: the command's name, for the message.
        algorithms: whether the command trains with one of several algorithms, whose options differ.

    Raises:
        ConfigError: a flag is unknown; the message states the flag to write instead.
    """
    allowed = {*known, *EXTRA, *(f"no_{name}" for name in switches)}
    for word in words:
        name = word.partition("=")[0]
        single = SINGLE.fullmatch(name) is not None
        if not single and (
            name[2:].replace("-", "_") in allowed or name[:2] != "--" or name == "--"
        ):
            continue
        hint = foreign.hint(
            name.lstrip("-"),
            known,
            _algorithms() if algorithms else None,
            switches=switches,
            commands=_commands(program),
        )
        more = f"{program} --help lists all options"
        raise ConfigError(f"unknown option {name}; {hint or more}")


def commands_with(flag: str) -> list[str]:
    """The commands that have a flag, such as "ppo-jax train"."""
    name = foreign.plain(flag.partition("=")[0].removeprefix("--")).removeprefix("no_")
    ours = (name, *foreign.SAME.get(name, ()))
    return [command for command, known in _commands("").items() if {*ours} & known]


def refuse_values(words: list[str], fields: dict[str, Any], program: str, most: float = 0) -> int:
    """Refuse a value that is not a number, or not among the choices, where there must be one, and
    words that belong to no option.

    Args:
        words: the command line.
        fields: name -> field of every option.
        program: the command's name, for the message.
        most: the number of words that the command takes besides its options.

    Returns:
        The number of words that belong to no option.

    Raises:
        ConfigError: a value is invalid; the message states the flag and the allowed values.
    """
    alone = 0
    for name, values in _given(words):
        field = fields.get(name)
        count = _count(field) if field is not None else int(name in EXTRA[1:])
        if len(values) < count < math.inf:
            needed = "a value" if count == 1 else f"{int(count)} values"
            raise ConfigError(f"{foreign.flag(name)} needs {needed}")
        for value in values[: len(values) if count == math.inf else int(count)]:
            if field is not None:
                _check(field, name, value, fields)
        rest = [] if count == math.inf else values[int(count) :]
        alone += len(rest)
        if rest and (alone > most or _truth(name, fields, rest[0])):
            word = rest[0] if _truth(name, fields, rest[0]) else rest[int(most) - alone]
            raise ConfigError(_too_many(name, values, word, fields=fields, program=program))
    return alone


def _count(field: Any) -> float:
    """The number of words that a flag takes."""
    wanted, text = kind(field), str(field.type)
    if wanted.base is bool:
        return 0
    if not wanted.several:
        return 1
    parts = next((get_args(t) for t in (field.type, *get_args(field.type)) if _is_tuple(t)), ())
    if "UseAppendAction" in text:
        return 1
    return math.inf if Ellipsis in parts or not parts else len(parts)


def _is_tuple(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _truth(name: str, fields: dict[str, Any], value: str) -> bool:
    """Whether a switch was given a value."""
    field = fields.get(name.removeprefix("no_"))
    return field is not None and kind(field).base is bool and value.lower() in TRUTH


def _too_many(
    name: str, values: list[str], word: str, *, fields: dict[str, Any], program: str
) -> str:
    """The message for a word that belongs to no option."""
    own = foreign.flag(name)
    if _truth(name, fields, word):
        plain = name.removeprefix("no_")
        return f"{own} takes no value; write {foreign.flag(plain)} or {foreign.flag(f'no_{plain}')}"
    if name == "seeds" and "vary" in fields:
        return "--seeds is a number of seeds, the first of which is --seed"
    if name in fields and kind(fields[name]).several and _count(fields[name]) == 1:
        return f"{own} takes one value; give {own} again for {word!r}"
    if name in fields and kind(fields[name]).base is not bool:
        more = f"; --vary {name}={','.join(values)} trains with each of them"
        given = f"{own} takes one value, and {word!r} is one too many"
        return given + (more if "vary" in fields and name != "vary" else "")
    if "num_envs" in fields:
        if word in PRESETS:
            return f"unknown word {word!r}; write --preset {word}"
        found = suites.elsewhere(word)[:1]
        if found:
            suite, env_id = found[0]
            env = env_id if suite in suites.BARE else f"{suite}:{env_id}"
            return f"unknown word {word!r}; write --env {env}"
    return f"unknown word {word!r}; {program} --help lists all options"


def _check(field: Any, name: str, value: str, fields: dict[str, Any]) -> None:
    """Refuse one value of an option."""
    wanted, bounds = kind(field), field.metadata["bounds"]
    if means_none(field, value):
        return
    given = f"{foreign.flag(name)} is {value!r}; "
    if wanted.scheduled and "(" in value:
        return
    if bounds.choices is not None and not bounds.admits(value):
        raise ConfigError(f"{given}it must be {bounds}")
    if wanted.base not in NUMBERS:
        return
    read, words = NUMBERS[wanted.base]
    try:
        read(value)
    except ValueError as error:
        allowed = "" if str(bounds) == "finite" else f" {bounds}"
        text = f"it must be {SCHEDULED if wanted.scheduled else words + allowed}"
        if wanted.several and "," in value:
            text = f"write {foreign.flag(name)} {value.replace(',', ' ')}"
        elif "," in value and "vary" in fields:
            text += f"; --vary {name}={value} trains with each of them"
        raise ConfigError(given + text) from error


def _given(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(option, the words after it) of each flag on a command line; at first ("", the words before
    the first flag)."""
    flags = [k for k, word in enumerate(words) if word.startswith("--")]
    yield "", [*words[: flags[0] if flags else len(words)]]
    for k, end in itertools.pairwise([*flags, len(words)]):
        name, equals, value = words[k][2:].partition("=")
        yield name.replace("-", "_"), [*([value] if equals else []), *words[k + 1 : end]]


def _algorithms() -> dict[str, set[str]]:
    """Algorithm -> its options."""
    return {name: {f.name for f in dataclasses.fields(c)} for name, c in CONFIGS.items()}


def _commands(program: str) -> dict[str, set[str]]:
    """Another command -> its options; the modules are imported here, for a message alone."""
    from ppo_jax.cli import check_env, evaluate, export, rlhf, sweep, train
    from ppo_jax.cli.flags import options_of

    options = {n for names in _algorithms().values() for n in names}
    options |= {f.name for f in dataclasses.fields(TrainConfig)}
    found = {
        "ppo-jax train": options | {*train.RUN_OPTIONS, *train.CLUSTER_OPTIONS},
        "ppo-jax sweep": options | {*sweep.OPTIONS},
    }
    for command in (evaluate, export, check_env):
        found[command.PROGRAM] = {*options_of(command.prepared)}
    for name, records in (rlhf.KINDS | rlhf.OTHERS).items():
        own = {f.name for record in records for f in dataclasses.fields(record)}
        found[f"{rlhf.PROGRAM} {name}"] = own
    return {name: own for name, own in found.items() if name != program}
