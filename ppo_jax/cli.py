"""The command line: the dataclasses of a run as flags (tyro), errors as one line.

Precedence, weakest first: defaults of the dataclasses, the preset, the TOML file, flags.
"""

import argparse
import dataclasses
import sys
import tomllib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_origin

import tyro

from ppo_jax import config as configs
from ppo_jax import devices
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.options import option, whole
from ppo_jax.presets import PRESETS
from ppo_jax.runner import Diverged, RunOptions, run

PROGRAM = "python -m ppo_jax.train"
FREE_ON_RESUME = ("total_timesteps", "anneal_timesteps")


RUN_OPTIONS = {f.name: f for f in dataclasses.fields(RunOptions)}
Fields = dict[str, dataclasses.Field[Any]]


class _FirstPass(argparse.ArgumentParser):
    """Finds the flags that the others depend on."""

    def error(self, message: str) -> NoReturn:
        """As any other bad input, without a usage of these few flags."""
        raise ConfigError(f"{message}; see --help")


def train(arguments: list[str] | None = None) -> NoReturn:
    """`python -m ppo_jax.train`."""
    exit_with(lambda: _train(sys.argv[1:] if arguments is None else arguments))


def evaluate(arguments: list[str] | None = None) -> NoReturn:
    """`python -m ppo_jax.evaluate`."""
    exit_with(lambda: _evaluate(sys.argv[1:] if arguments is None else arguments))


def export(arguments: list[str] | None = None) -> NoReturn:
    """`python -m ppo_jax.export`."""
    exit_with(lambda: _export(sys.argv[1:] if arguments is None else arguments))


def plot(arguments: list[str] | None = None) -> NoReturn:
    """`python -m ppo_jax.plot`."""
    _exit_with(lambda: _plot(sys.argv[1:] if arguments is None else arguments))


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run a command that computes on JAX's devices, which are looked at first.

    What a person can mend is one line and exit code 2, not a traceback.
    """

    def checked() -> int:
        if not {"-h", "--help"} & {*sys.argv[1:]}:  # help needs no device
            devices.check()
        return command()

    _exit_with(checked)


def _exit_with(command: Callable[[], int]) -> NoReturn:
    from ppo_jax.checkpoint import CheckpointError
    from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment

    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        sys.exit(command())
    except (ConfigError, CheckpointError, InvalidEnvironment, UnknownEnvironment) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (Diverged, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _train(arguments: list[str]) -> int:
    from ppo_jax.run_directory import read_run_options

    resumed = _resumed(arguments)
    base = base_config(arguments) if resumed is None else _saved_config(resumed, arguments)
    kept = {} if resumed is None else read_run_options(resumed)
    config, options = _parse(arguments, base, kept)
    if resumed is not None:
        _refuse_changes(base, config)
    configs.check(config)
    return run(config, options)


def _parse(
    arguments: list[str], base: TrainConfig, kept: dict[str, Any]
) -> tuple[TrainConfig, RunOptions]:
    """Flags on top of a configuration and of the run options that a resumed run had."""
    doc = "Train an agent and keep the run in a directory."
    config, own = parse(arguments, base, RUN_OPTIONS, kept, PROGRAM, doc)
    return config, RunOptions(**own)


def _resumed(arguments: list[str]) -> Path | None:
    """The run that --resume names."""
    first = _FirstPass(add_help=False, allow_abbrev=False)
    first.add_argument("--resume", type=Path)
    return first.parse_known_args(arguments)[0].resume


def _saved_config(run_dir: Path, arguments: list[str]) -> TrainConfig:
    from ppo_jax.run_directory import read_config

    given = _selection(arguments)
    if given.preset is not None or given.config is not None:
        raise ConfigError("--resume goes on with its own values: no --preset, no --config")
    return read_config(run_dir)


def _selection(arguments: list[str]) -> argparse.Namespace:
    """The flags that decide what the others start from."""
    first = _FirstPass(add_help=False, allow_abbrev=False)
    for name in ("env", "algorithm", "preset", "config"):
        first.add_argument(f"--{name}")
    return first.parse_known_args(arguments)[0]


def base_config(arguments: list[str]) -> TrainConfig:
    """What the flags modify: defaults, under the preset, under the file.

    Raises:
        ConfigError: an unknown preset, environment or name in the file.
    """
    given = _selection(arguments)
    file = _read_file(Path(given.config)) if given.config is not None else {}
    env = file.get("env") if given.env is None else given.env
    algorithm = file.get("algorithm") if given.algorithm is None else given.algorithm
    preset = file.pop("preset", None) if given.preset is None else given.preset
    file.pop("preset", None)
    preset = configs.preset_values(preset, env, algorithm)
    values = {**preset, **file}
    for name, value in (("env", given.env), ("algorithm", given.algorithm)):
        if value is not None:
            values[name] = value
    return configs.from_json(values)


def _read_file(path: Path) -> dict[str, Any]:
    """A flat TOML file, hyphens in names as underscores; or the config.json of a run."""
    if path.suffix == ".json":
        from ppo_jax.run_directory import read_config_file

        return configs.to_json(read_config_file(path))
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    named: dict[str, Any] = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name in named:
            raise ConfigError(f"{path} sets {name} twice")
        if name in RUN_OPTIONS:
            raise ConfigError(f"{path} sets {name}, which is a flag alone: it changes no number")
        named[name] = value
    return named


def parse(
    arguments: list[str],
    base: TrainConfig,
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
    known = configs.options(base.algorithm)
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
    ]
    fields = [(n, f, flat[n]) for n, f in known.items()]
    fields += [(n, f, kept.get(n, f.default)) for n, f in more.items()]
    parsed = read_flags(arguments, fields, program, doc, selection)
    own = {name: parsed[name] for name in more}
    return configs.from_flat({n: parsed[n] for n in known}), own


def read_flags(
    arguments: list[str],
    fields: list[tuple[str, dataclasses.Field[Any], Any]],
    program: str,
    doc: str,
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
    """
    flags = dataclasses.make_dataclass(
        "Flags",
        [(n, _flag_type(f), dataclasses.field(default=v)) for n, f, v in fields]
        + [(n, _documented(t, f), dataclasses.field(default=None)) for n, t, f in selection],
    )
    flags.__doc__ = doc
    parsed: Any = tyro.cli(flags, args=arguments, registry=_REGISTRY, prog=program)
    return {f.name: getattr(parsed, f.name) for f in dataclasses.fields(parsed)}


def _flag_type(field: dataclasses.Field[Any]) -> Any:
    choices = field.metadata["bounds"].choices
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


def _refuse_changes(saved: TrainConfig, wanted: TrainConfig) -> None:
    """A resumed run is the same run; only its length may be another."""
    before, after = configs.to_flat(saved), configs.to_flat(wanted)
    changed = [n for n in before if n not in FREE_ON_RESUME and before[n] != after.get(n)]
    if changed:
        listed = ", ".join(f"{n} (was {before[n]}, given {after.get(n)})" for n in changed)
        raise ConfigError(
            f"--resume continues the same run, but these differ: {listed}; leave them out, "
            "or start a new run"
        )


def _evaluate(arguments: list[str]) -> int:
    from ppo_jax.play import play

    return _positional(play, arguments, "python -m ppo_jax.evaluate")


def _export(arguments: list[str]) -> int:
    from ppo_jax.export import export_command

    return _positional(export_command, arguments, "python -m ppo_jax.export")


def _plot(arguments: list[str]) -> int:
    from ppo_jax.plot import plot

    return _positional(plot, arguments, "python -m ppo_jax.plot")


def _positional(command: Callable[..., int], arguments: list[str], program: str) -> int:
    """A function's signature as a command line, what has no default without a flag."""
    return tyro.cli(
        command,
        args=arguments,
        registry=_REGISTRY,
        prog=program,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
