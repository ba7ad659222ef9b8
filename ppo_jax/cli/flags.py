"""Dataclasses of options as flags (tyro).

Precedence, weakest first: defaults of the dataclasses, the preset, the TOML file, flags.
"""

import argparse
import dataclasses
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_origin

import tyro

from ppo_jax import config as configs
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.config.options import check, coerce, kind, option, show, whole
from ppo_jax.config.options import parse as parse_value
from ppo_jax.config.presets import PRESETS
from ppo_jax.config.schedules import Schedule
from ppo_jax.experiment import RunOptions
from ppo_jax.runs import trust
from ppo_jax.runs.trust import Given

RUN_OPTIONS = {f.name: f for f in dataclasses.fields(RunOptions)}
Fields = dict[str, dataclasses.Field[Any]]


class FirstPass(argparse.ArgumentParser):
    """Finds the flags that the others depend on."""

    def error(self, message: str) -> NoReturn:
        """As any other bad input, without a usage of these few flags."""
        raise ConfigError(f"{message}; see --help")


def selection_of(arguments: list[str]) -> argparse.Namespace:
    """The flags that decide what the others start from."""
    first = FirstPass(add_help=False, allow_abbrev=False)
    for name in (*configs.CODE, "preset", "config"):
        first.add_argument(f"--{name}")
    first.add_argument("--callback", nargs="*", default=())
    first.add_argument("--trust", action="store_true")
    return first.parse_known_args(arguments)[0]


def given_of(arguments: list[str]) -> Given:
    """What the person names on the command line, beside what a file names."""
    selection = selection_of(arguments)
    parts = (selection.env, selection.policy, selection.algorithm)
    return Given(*parts, selection.trust, frozenset(selection.callback))


def base_config(arguments: list[str]) -> TrainConfig:
    """What the flags modify: defaults, under the preset, under the file.

    Raises:
        ConfigError: an unknown preset, environment or name in the file; or the file names code to
            import, is not of a run of the user's own, and neither named again nor trusted.
    """
    given = selection_of(arguments)
    file = _read_file(Path(given.config), given_of(arguments)) if given.config is not None else {}
    env = file.get("env") if given.env is None else given.env
    algorithm = file.get("algorithm") if given.algorithm is None else given.algorithm
    preset = file.pop("preset", None) if given.preset is None else given.preset
    file.pop("preset", None)
    preset = configs.preset_values(preset, env, algorithm)
    values = {**preset, **file}
    for name in configs.CODE:
        if getattr(given, name) is not None:
            values[name] = getattr(given, name)
    return configs.from_json(values)


def _read_file(path: Path, given: Given) -> dict[str, Any]:
    """A flat TOML file, hyphens in names as underscores; or the config.json of a run."""
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
        if name in RUN_OPTIONS:
            raise ConfigError(f"{path} sets {name}, which is a flag alone")
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
) -> tuple[TrainConfig, dict[str, Any]]:
    """Flags on top of a configuration.

    Args:
        arguments: the command line.
        base: what holds where no flag is given.
        more: name -> field of the program's own options.
        kept: values of those in place of their defaults.
        program: its name, for --help.
        doc: what it does.

    Returns:
        (the configuration, name -> value of the program's own options)
    """
    flat = configs.to_flat(base)
    known = configs.fields(base.algorithm)
    taken = sorted(known.keys() & more.keys())
    if taken:
        raise ConfigError(
            f"the Config of algorithm {base.algorithm!r} has a field {taken[0]!r}, which is a flag "
            "of this command; give it another name"
        )
    presets = (*PRESETS, "none")
    selection = [
        (
            "preset",
            str | None,
            option(None, "tuned values; default: the environment's own", choices=presets),
        ),
        (
            "config",
            Path | None,
            option(None, "TOML file of values, or a run's config.json; flags go before it"),
        ),
        (
            "trust",
            bool,
            option(False, "let a file or folder of somebody else name any code to import"),
        ),
    ]
    fields = [(n, f, flat[n]) for n, f in known.items()]
    fields += [(n, f, coerce(f, kept[n]) if n in kept else f.default) for n, f in more.items()]
    parsed = read_flags(arguments, fields, program, doc, selection=selection)
    own = {name: parsed[name] for name in more}
    return configs.from_flat({n: parsed[n] for n in known}), own


def read_flags(
    arguments: list[str],
    fields: list[tuple[str, dataclasses.Field[Any], Any]],
    program: str,
    doc: str,
    *,
    selection: Sequence[tuple[str, Any, Any]] = (),
) -> dict[str, Any]:
    """A command line made of options.

    Args:
        arguments: the command line.
        fields: (name, a field made by `option`, its default) of each flag.
        program: its name, for --help.
        doc: what it does.
        selection: (name, type, a field) of flags without a default.

    Returns:
        name -> value.

    Raises:
        ConfigError: a word that is neither a number nor a schedule, where both are allowed.
    """
    flags = dataclasses.make_dataclass(
        "Flags",
        [(n, _flag_type(f), dataclasses.field(default=v)) for n, f, v in fields]
        + [(n, _documented(t, f), dataclasses.field(default=f.default)) for n, t, f in selection],
    )
    flags.__doc__ = doc
    parsed: Any = tyro.cli(flags, args=arguments, registry=_REGISTRY, prog=program)
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(parsed)}
    return values | {n: _scheduled(f, values[n]) for n, f, _ in fields if kind(f).scheduled}


def _scheduled(field: dataclasses.Field[Any], value: Any) -> Any:
    """A number or a schedule from the word that tyro leaves as it is: what is wrong with a schedule
    takes a line of its own, and not a box that says no more than the type."""
    if not isinstance(value, str):
        return value
    try:
        return parse_value(field, value)
    except ConfigError:
        raise
    except ValueError:
        check(field, value)
        raise


def _flag_type(field: dataclasses.Field[Any]) -> Any:
    choices = field.metadata["bounds"].choices
    if kind(field).scheduled:
        return _documented(Annotated[float | Schedule, _NUMBER_OR_SCHEDULE], field)
    return _documented(Literal[choices] if choices else field.type, field)


def _documented(kind: Any, field: Any) -> Any:
    bounds, shown = field.metadata["bounds"], get_origin(kind) is Literal
    numeric = any(name in str(kind) for name in ("int", "float"))
    says = numeric or (bounds.choices and not shown)
    text = field.metadata["doc"] + (f"; {bounds}" if says else "")
    return Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=_hint)]


def _hint(default: str) -> str:
    return f"(default: {default})"


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


_NUMBER_OR_SCHEDULE = tyro.constructors.PrimitiveConstructorSpec[Any](
    nargs=1,
    metavar="FLOAT|SCHEDULE",
    instance_from_str=lambda words: words[0],
    is_instance=lambda x: True,
    str_from_instance=lambda x: [show(x)],
)


def positional(command: Callable[..., int], arguments: list[str], program: str) -> int:
    """A function's signature as a command line, what has no default without a flag."""
    return tyro.cli(
        command,
        args=arguments,
        registry=_REGISTRY,
        prog=program,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
