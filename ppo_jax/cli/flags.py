"""Dataclasses of options as flags (tyro).

In increasing precedence: the defaults of the dataclasses, the preset, the TOML file, the flags.
Nothing here imports JAX.
"""

import argparse
import contextlib
import dataclasses
import functools
import inspect
import io
import math
import re
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import tyro

from ppo_jax import config as configs
from ppo_jax.algorithms.configs import CONFIGS
from ppo_jax.cli.groups import arranged, group_of
from ppo_jax.cli.listing import folded
from ppo_jax.cli.words import refuse_unknown, refuse_values
from ppo_jax.config import ConfigError, TrainConfig, commands
from ppo_jax.config.foreign import flag
from ppo_jax.config.options import check, coerce, kind, option, show, whole
from ppo_jax.config.options import parse as parse_value
from ppo_jax.config.schedules import Schedule
from ppo_jax.runs import terminal, trust
from ppo_jax.runs.options import RunOptions
from ppo_jax.runs.trust import Given

RUN_OPTIONS = {f.name: f for f in dataclasses.fields(RunOptions)}
Fields = dict[str, dataclasses.Field[Any]]


@dataclasses.dataclass(frozen=True)
class StartOptions:
    """The values that the other flags override."""

    preset: str | None = option(
        None,
        "name of a preset of tuned values, as `ppo-jax presets` lists them; none: no preset; by "
        "default the preset of the environment and the algorithm, if there is one",
    )
    config: Path | None = option(
        None, "TOML file of options, or the config.json of a run; flags override its values"
    )
    print_config: bool = option(
        False, "print the resolved configuration as TOML, which --config reads, and train nothing"
    )
    trust: bool = option(
        False, "allow a file or a folder that is not your own to name code to import"
    )


@dataclasses.dataclass(frozen=True)
class NamedAgain:
    """The code of a run, named again for a run that is not the user's own.

    Attributes:
        env: environment of the run as MODULE:NAME, named again: a run that is not your own may not
            make this process import it.
        policy: network of the run, named again.
        algorithm: algorithm of the run, named again.
        trust: allow the run to name code to import.
    """

    env: str | None = None
    policy: str | None = None
    algorithm: str | None = None
    trust: bool = False


NAMED_AGAIN = NamedAgain()
# In place of the origin of a default, for an option that must be given.
REQUIRED = "required"
HELP = ("-h", "--help")
START = {f.name: f for f in dataclasses.fields(StartOptions)}
# Options of a command line that no file holds.
NOT_IN_FILES = {*RUN_OPTIONS, *START, "seeds", "vary"} - {"preset"}


class FirstPass(argparse.ArgumentParser):
    """A parser of those few flags that the others depend on."""

    def error(self, message: str) -> NoReturn:
        """Raise an error as for any other wrong input, without the usage of these few flags."""
        raise ConfigError(f"{message}; see --help")


def selection_of(arguments: list[str]) -> argparse.Namespace:
    """The flags that decide the defaults of the others."""
    first = FirstPass(add_help=False, allow_abbrev=False)
    count = "?" if {*HELP} & {*arguments} else None  # help is shown for an unfinished line too
    for name in (*configs.CODE, "preset"):
        first.add_argument(f"--{name}", nargs=count)
    first.add_argument("--config", type=optional, nargs=count)
    first.add_argument("--callback", nargs="*", default=())
    found = first.parse_known_args([w for w in arguments if w not in HELP])[0]
    found.trust = is_on("trust", arguments)
    if found.preset is not None and optional(found.preset) is None:
        found.preset = "none"
    return found


def optional(text: str) -> str | None:
    """The value of an option that may be None, which may be written in upper or lower case."""
    return None if text.lower() == "none" else text


def is_on(name: str, arguments: list[str]) -> bool:
    """Whether a command line turns a switch on: the last of --NAME and --no-NAME decides."""
    words = [word.replace("_", "-") for word in arguments]
    on, off = (f"--{word}{name.replace('_', '-')}" for word in ("", "no-"))
    return next((word == on for word in reversed(words) if word in (on, off)), False)


def given_of(arguments: list[str]) -> Given:
    """The names of code on the command line, which files may then name as well."""
    selection = selection_of(arguments)
    parts = (selection.env, selection.policy, selection.algorithm)
    return Given(*parts, selection.trust, frozenset(selection.callback))


def base_config(arguments: list[str]) -> TrainConfig:
    """The configuration that the flags modify: the defaults, overridden by the preset, overridden
    by the file.

    Raises:
        ConfigError: an unknown preset, environment or name in the file; or the file names code to
            import, is not of a run of the user's own, and the code is neither named again nor
            trusted.
    """
    return starting_point(arguments)[0]


def starting_point(arguments: list[str]) -> tuple[TrainConfig, dict[str, str]]:
    """`base_config`, and where its values come from.

    Returns:
        (the configuration, name of an option -> "preset NAME" or the name of the file). Options
        with the default of their dataclass are left out.

    Raises:
        As `base_config`.
    """
    given = selection_of(arguments)
    file = _read_file(Path(given.config), given_of(arguments)) if given.config is not None else {}
    env = file.get("env") if given.env is None else given.env
    algorithm = file.get("algorithm") if given.algorithm is None else given.algorithm
    preset = file.pop("preset", None) if given.preset is None else given.preset
    file.pop("preset", None)
    tuned = configs.preset_values(preset, env, algorithm)
    _refuse_other_options(file, given)
    values = {**tuned, **file}
    named = {n: getattr(given, n) for n in configs.CODE if getattr(given, n) is not None}
    name = preset or (configs.preset_of(env, algorithm) if tuned else None)
    origins = dict.fromkeys(tuned, f"preset {name}") | dict.fromkeys(file, str(given.config))
    config = configs.from_json(values | named)
    return config, {n: where for n, where in origins.items() if n not in named}


def _refuse_other_options(file: dict[str, Any], given: argparse.Namespace) -> None:
    """Refuse a file with options of its algorithm where the command line names another one."""
    before, after = file.get("algorithm"), given.algorithm
    if before not in CONFIGS or after not in CONFIGS or before == after:
        return
    lost = [name for name in file if name in configs.fields(before).keys() - configs.fields(after)]
    if lost:
        raise ConfigError(
            f"{given.config} has options of {before} that {after} does not have; remove from the "
            f"file: {', '.join(lost)}"
        )


def _read_file(path: Path, given: Given) -> dict[str, Any]:
    """The values of a TOML file, with underscores for hyphens in names; or of a config.json."""
    if path.suffix == ".json":
        from ppo_jax.runs.folder import read_config_file

        return configs.to_json(read_config_file(path, given))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    named: dict[str, Any] = {}
    for written, value in values.items():
        name = written.replace("-", "_")
        if name in named:
            raise ConfigError(f"{path} sets {name} twice")
        if isinstance(value, dict):
            raise ConfigError(f"{path} has a table [{written}]; options are given without tables")
        if name in NOT_IN_FILES:
            raise ConfigError(f"{path} sets {name}; give it on the command line, as {flag(name)}")
        named[name] = value
    trust.check({"config": named}, given.named, given.trust, path)
    return named


def parse(
    arguments: list[str],
    base: TrainConfig,
    *,
    more: Fields,
    kept: dict[str, Any],
    program: str,
    doc: str,
    origins: dict[str, str] | None = None,
    groups: dict[str, str] | None = None,
) -> tuple[TrainConfig, dict[str, Any]]:
    """Flags on top of a configuration.

    Args:
        arguments: the command line.
        base: the values of options that have no flag on the command line.
        more: name -> field of the command's own options.
        kept: values of the command's own options, in place of their defaults.
        program: the command's name, for --help.
        doc: the description of the command.
        origins: name -> where a value of `base` comes from, as `starting_point` gives it.
        groups: name -> its group in --help, where it is not that of `ppo_jax.cli.groups`.

    Returns:
        (the configuration, name -> value of the command's own options)
    """
    flat = configs.to_flat(base)
    known = configs.fields(base.algorithm)
    taken = sorted(known.keys() & more.keys())
    if taken:
        raise ConfigError(
            f"the Config of algorithm {base.algorithm!r} has a field {taken[0]!r}, which is a flag "
            "of this command; give it another name"
        )
    used = [o.removeprefix("preset ") for o in (origins or {}).values() if o.startswith("preset ")]
    start = {"preset": used[0] if used else None}  # shown by --help
    fields = [(n, f, start.get(n, f.default)) for n, f in START.items()]
    fields += [(n, f, flat[n]) for n, f in known.items()]
    fields += [(n, f, coerce(f, kept[n]) if n in kept else f.default) for n, f in more.items()]
    named = {n: group_of(n, "algorithm") for n in known} | (groups or {})
    parsed = read_flags(arguments, fields, program, doc, origins=origins, groups=named)
    own = {name: parsed[name] for name in (*more, "print_config")}
    return configs.from_flat({n: parsed[n] for n in known}), own


def read_flags(
    arguments: list[str],
    fields: list[tuple[str, dataclasses.Field[Any], Any]],
    program: str,
    doc: str,
    *,
    origins: dict[str, str] | None = None,
    groups: dict[str, str] | None = None,
    word: str = "",
) -> dict[str, Any]:
    """A command line made of options.

    Args:
        arguments: the command line.
        fields: (name, a field made by `option`, its default) of each flag.
        program: the command's name, for --help.
        doc: the description of the command.
        origins: name -> where its default comes from, for --help; or `REQUIRED`.
        groups: name -> its group in --help, where it is not that of `ppo_jax.cli.groups`.
        word: name of the argument that may precede the options, as --help shows it.

    Returns:
        name -> value.

    Raises:
        ConfigError: a flag that does not exist, with the one that may be meant; or a value of the
            wrong kind.
    """
    if {*HELP} & {*arguments}:
        arguments = ["--help"]
    named = {n: f for n, f, _ in fields}
    switches = [n for n, f in named.items() if kind(f).base is bool]
    refuse_unknown(arguments, named, switches, program, algorithms="total_timesteps" in named)
    refuse_values(arguments, named, program)
    flags = _dataclass_of(fields, origins or {}, groups or {})
    flags.__doc__ = doc
    style = (tyro.conf.OmitArgPrefixes,)
    parsed = _parsed(flags, arguments, program, config=style, word=word)
    values = _flattened(parsed)
    return values | {n: _scheduled(f, values[n]) for n, f, _ in fields if kind(f).scheduled}


class _Help(io.StringIO):
    """The text of --help as tyro prints it, in the colours and characters of the real output."""

    def __init__(self, shown_on: Any) -> None:
        super().__init__()
        self._shown_on = shown_on

    def isatty(self) -> bool:
        return bool(self._shown_on.isatty())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._shown_on.encoding or "utf-8"


def _parsed(
    what: Any, arguments: list[str], program: str, *, config: tuple[Any, ...], word: str = ""
) -> Any:
    """What tyro makes of a command line; --help is printed with a usage line that is wrapped, which
    tyro does not do."""
    prog = commands.shown(program)
    parse = functools.partial(tyro.cli, what, registry=_REGISTRY, prog=prog, config=config)
    if "--help" not in arguments:
        return parse(args=arguments)
    text = _Help(sys.stdout)
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse(args=arguments)
    usage, _, rest = text.getvalue().partition("\n")
    if word:
        usage = usage.replace("[OPTIONS]", f"{word} [OPTIONS]")
    terminal.say(f"{folded(usage)}\n{rest}".rstrip())
    sys.exit(0)


def _dataclass_of(
    fields: list[tuple[str, dataclasses.Field[Any], Any]],
    origins: dict[str, str],
    groups: dict[str, str],
) -> Any:
    """A dataclass with one dataclass for each group of options in it; the first group stands in the
    outer one."""
    by_name = {name: (field, default) for name, field, default in fields}
    members: dict[str, list[str]] = {}
    for name in by_name:
        members.setdefault(groups.get(name) or group_of(name, "run"), []).append(name)

    def described(names: list[str]) -> list[Any]:
        found = [(name, *by_name[name]) for name in names]
        return [
            (n, _flag_type(f, origins.get(n)), dataclasses.field(default=default))
            for n, f, default in found
        ]

    outer: list[Any] = []
    for group, names in arranged(members).items():
        if group == "start":
            outer += described(names)
            continue
        title = group.replace(" ", "_").replace("-", "_")
        inner = dataclasses.make_dataclass(title.capitalize(), described(names))
        inner.__doc__ = ""
        outer.append((title, inner, dataclasses.field(default_factory=inner)))
    return dataclasses.make_dataclass("Flags", outer)


def _flattened(parsed: Any) -> dict[str, Any]:
    """Name -> value of the options in a dataclass of groups."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(parsed):
        value = getattr(parsed, field.name)
        is_group = field.default_factory is not dataclasses.MISSING
        values |= _flattened(value) if is_group else {field.name: value}
    return values


def _scheduled(field: dataclasses.Field[Any], value: Any) -> Any:
    """A number or a schedule from the word that tyro leaves as it is: the error of a schedule is
    one line that names the mistake, and not a box that names the type alone."""
    if not isinstance(value, str):
        return value
    try:
        return parse_value(field, value)
    except ConfigError:
        raise
    except ValueError:
        check(field, value)
        raise


def _flag_type(field: dataclasses.Field[Any], origin: str | None) -> Any:
    """The type of a flag for tyro, with its help text."""
    choices = field.metadata["bounds"].choices
    if kind(field).scheduled:
        return _documented(Annotated[float | Schedule, _NUMBER_OR_SCHEDULE], field, origin)
    if choices is None:
        return _documented(field.type, field, origin)
    named: Any = Literal[choices]
    return _documented(named | None if kind(field).optional else named, field, origin)


def _documented(kind: Any, field: Any, origin: str | None) -> Any:
    """A type with the help text of its option: the text, the allowed range, the default."""
    bounds = field.metadata["bounds"]
    bounded = bounds.choices is None and str(bounds) != "finite"
    text = commands.shown(field.metadata["doc"]) + (f"; {bounds}" if bounded else "")
    where = "" if origin is None else f", from {origin}"
    hint = lambda default: f"(default: {default or 'empty'}{where})"
    if origin == REQUIRED:
        hint = lambda default: "(required)"
    return Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=hint)]


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _whole_number(info: Any) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    """5e5 is an integer, 1.5 is not."""
    if info.type is not int:
        return None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole(words[0]),
        is_instance=lambda x: isinstance(x, int),
        str_from_instance=lambda x: [str(x)],
    )


_READ: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", whole),
    float: ("FLOAT", float),
    str: ("STR", str),
    Path: ("PATH", Path),
}


@_REGISTRY.primitive_rule
def _optional(info: Any) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """A value, or several, or None, which may be written in upper or lower case."""
    parts = [part for part in get_args(info.type) if part is not types.NoneType]
    if len(parts) != 1 or len(get_args(info.type)) != 2:
        return None
    several = get_origin(parts[0]) is tuple
    items = get_args(parts[0]) if several else (parts[0],)
    if any(item not in _READ for item in items):
        return None

    def read(words: list[str]) -> Any:
        if optional(words[0]) is None:
            return None
        values = tuple(_READ[item][1](word) for item, word in zip(items, words, strict=True))
        return values if several else values[0]

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=len(items),
        metavar=" ".join(_READ[item][0] for item in items),
        instance_from_str=read,
        is_instance=lambda x: x is None or isinstance(x, get_origin(parts[0]) or parts[0]),
        str_from_instance=lambda x: [*map(str, x)] if several and x is not None else [str(x)],
    )


_NUMBER_OR_SCHEDULE = tyro.constructors.PrimitiveConstructorSpec[Any](
    nargs=1,
    metavar="FLOAT|SCHEDULE",
    instance_from_str=lambda words: words[0],
    is_instance=lambda x: True,
    str_from_instance=lambda x: [show(x)],
)


def positional(command: Callable[..., Any], arguments: list[str], program: str) -> Any:
    """Call a function whose parameters are the options of a command line; those without a default
    have no flag.

    Returns:
        The value that the function returns.

    Raises:
        ConfigError: a flag that does not exist, a value of the wrong kind, or a missing word.
    """
    if {*HELP} & {*arguments}:
        arguments = ["--help"]
    else:
        _refuse_words(command, arguments, program)
    style = (tyro.conf.PositionalRequiredArgs, tyro.conf.OmitArgPrefixes)
    return _parsed(_for_help(command), arguments, program, config=style)


def _for_help(command: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the docstring of a command whose entries are one line each, because tyro
    would keep their line breaks in --help; and with a text for defaults that are empty."""

    @functools.wraps(command)
    def copy(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    del copy.__wrapped__  # tyro would read the docstring of the command itself
    copy.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    copy.__doc__ = re.sub(r"\n {8}(?=\S)", " ", inspect.cleandoc(command.__doc__ or ""))
    copy.__annotations__ = {
        name: _explained(annotation, copy.__signature__.parameters.get(name))  # type: ignore[attr-defined]
        for name, annotation in get_type_hints(command).items()
    }
    return copy


def _explained(annotation: Any, parameter: inspect.Parameter | None) -> Any:
    """The type of a parameter; for several values, of which there may be none, with the text that
    --help shows in place of an empty default."""
    if parameter is None or get_origin(annotation) is not tuple:
        return annotation
    needed = parameter.default is inspect.Parameter.empty
    hint = "(required)" if needed else "(default: empty)"
    shown = parameter.default == () or needed
    return Annotated[annotation, tyro.conf.arg(help_behavior_hint=hint)] if shown else annotation


def _refuse_words(command: Callable[..., Any], arguments: list[str], program: str) -> None:
    """Refuse a command line for a function that `positional` calls."""
    parameters = inspect.signature(command).parameters.values()
    fields = {name: _field_of(name, kind) for name, kind in options_of(command).items()}
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    options = {name: field for name, field in fields.items() if name not in needed}
    words = " ".join(name.upper() for name in needed)
    for word in arguments:
        name = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and name in needed:
            raise ConfigError(f"write the {name} without a flag: {program} {words}")
    switches = [name for name, field in options.items() if kind(field).base is bool]
    refuse_unknown(arguments, options, switches, program)
    several = any(kind(fields[name]).several for name in needed)
    if refuse_values(arguments, options, program, math.inf if several else len(needed)) < 1:
        raise ConfigError(f"{words} is missing: {program} {words}; see {program} --help")


def options_of(command: Callable[..., Any]) -> dict[str, Any]:
    """Name -> type of the options of a function that `positional` calls: its parameters, and the
    fields of those that are a dataclass of options."""
    found: dict[str, Any] = {}
    for name, annotation in get_type_hints(command).items():
        if dataclasses.is_dataclass(annotation):
            found |= get_type_hints(annotation)
        elif name != "return":
            found[name] = annotation
    return found


def _field_of(name: str, annotation: Any) -> dataclasses.Field[Any]:
    """A parameter of a function as an option."""
    choices = get_args(annotation) if get_origin(annotation) is Literal else None
    field: dataclasses.Field[Any] = option(None, "", choices=choices)
    field.name, field.type = name, str if choices else annotation
    return field
