"""The command line: the dataclasses of a run as flags (tyro), errors as one line.

Precedence, weakest first: defaults of the dataclasses, the preset, the TOML file, flags.
"""

import argparse
import dataclasses
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro

from ppo_jax import config as configs
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.types import option

FREE_ON_RESUME = ("total_timesteps", "anneal_timesteps")


def train(arguments: list[str] | None = None) -> NoReturn:
    """`python -m ppo_jax.train`."""
    _exit(lambda: _train(sys.argv[1:] if arguments is None else arguments))


def evaluate(arguments: list[str] | None = None) -> NoReturn:
    """`python -m ppo_jax.evaluate`."""
    _exit(lambda: _evaluate(sys.argv[1:] if arguments is None else arguments))


def _exit(command: Callable[[], int]) -> NoReturn:
    """Run a command; what a person can mend is one line and exit code 2, not a traceback."""
    from ppo_jax.checkpoint import CheckpointError
    from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment
    from ppo_jax.runner import Diverged

    try:
        sys.exit(command())
    except (ConfigError, CheckpointError, InvalidEnvironment, UnknownEnvironment) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _train(arguments: list[str]) -> int:
    from ppo_jax import runner

    base, where = _base_config(arguments)
    config, options = _parse(arguments, base)
    if where.resume is not None:
        _refuse_changes(base, config)
        config = _stretch_annealing(base, config)
    configs.check(config)
    return runner.run(config, options)


def _base_config(arguments: list[str]) -> tuple[TrainConfig, argparse.Namespace]:
    """What the flags modify: a saved run's configuration, or defaults, preset and file."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("env", "algorithm", "preset", "config"):
        first.add_argument(f"--{name}")
    first.add_argument("--resume", type=Path)
    given = first.parse_known_args(arguments)[0]
    if given.resume is not None:
        from ppo_jax.run_directory import read_config

        return read_config(given.resume), given
    file = _read_file(Path(given.config)) if given.config else {}
    env, algorithm = given.env or file.get("env"), given.algorithm or file.get("algorithm")
    preset = configs.preset_values(given.preset or file.pop("preset", None), env, algorithm)
    values = {**preset, **file}
    for name, value in (("env", given.env), ("algorithm", given.algorithm)):
        if value is not None:
            values[name] = value
    return configs.from_json(values), given


def _read_file(path: Path) -> dict[str, Any]:
    """A flat TOML file, hyphens in names as underscores; or the config.json of a run."""
    if path.suffix == ".json":
        from ppo_jax.run_directory import read_config

        return configs.to_json(read_config(path.parent, path.name))
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return {name.replace("-", "_"): value for name, value in values.items()}


def _parse(arguments: list[str], base: TrainConfig) -> tuple[TrainConfig, Any]:
    """Flags on top of a configuration: (TrainConfig, RunOptions)."""
    from ppo_jax.runner import RunOptions

    flat = configs.to_flat(base)
    known = configs.options(base.algorithm)
    selection = [
        (
            "preset",
            str | None,
            option(None, "tuned values by name; default: the environment's own"),
        ),
        (
            "config",
            Path | None,
            option(None, "TOML file of values, or a run's config.json; flags go before it"),
        ),
    ]
    fields = [(n, f, flat[n]) for n, f in known.items()]
    fields += [(f.name, f, f.default) for f in dataclasses.fields(RunOptions)]
    flags = dataclasses.make_dataclass(
        "Train",
        [(n, _flag_type(f), dataclasses.field(default=v)) for n, f, v in fields]
        + [(n, _documented(t, f), dataclasses.field(default=None)) for n, t, f in selection],
    )
    flags.__doc__ = "Train an agent and keep the run in a directory."
    parsed: Any = tyro.cli(
        flags, args=arguments, registry=_REGISTRY, prog="python -m ppo_jax.train"
    )
    run = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(RunOptions)}
    return configs.from_flat({n: getattr(parsed, n) for n in known}), RunOptions(**run)


def _flag_type(field: dataclasses.Field[Any]) -> Any:
    choices = field.metadata["bounds"].choices
    return _documented(Literal[choices] if choices else field.type, field)


def _documented(kind: Any, field: Any) -> Any:
    bounds = str(field.metadata["bounds"])
    text = field.metadata["doc"] + (f"; {bounds}" if bounds and "one of" not in bounds else "")
    return Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint=_hint)]


def _hint(default: str) -> str:
    return f"(default: {default})"


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _whole_number(info: Any) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    """5e5 is an integer, 1.5 is not."""
    if info.type is not int:
        return None

    def parse(words: list[str]) -> int:
        try:
            return int(words[0])
        except ValueError:
            number = float(words[0])
            if not number.is_integer():
                raise ValueError(f"{words[0]} is not a whole number") from None
            return int(number)

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=parse,
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


def _stretch_annealing(saved: TrainConfig, wanted: TrainConfig) -> TrainConfig:
    """A longer run anneals over its new length, if it did over the old and nothing else is said."""
    old, new = (getattr(c.hyper, "anneal_timesteps", None) for c in (saved, wanted))
    if old != new or old != float(saved.total_timesteps):
        return wanted
    hyper = dataclasses.replace(wanted.hyper, anneal_timesteps=float(wanted.total_timesteps))
    return dataclasses.replace(wanted, hyper=hyper)


def _evaluate(arguments: list[str]) -> int:
    from ppo_jax.play import play

    return tyro.cli(
        play,
        args=arguments,
        registry=_REGISTRY,
        prog="python -m ppo_jax.evaluate",
        config=(tyro.conf.PositionalRequiredArgs,),
    )
