"""`ppo-jax train`, the same as `python -m ppo_jax.train`."""

import sys
from pathlib import Path
from typing import Any, NoReturn

from ppo_jax import config as configs
from ppo_jax import suites
from ppo_jax.cli.cluster import CLUSTER_OPTIONS, join
from ppo_jax.cli.errors import Work, asks_for_help, exit_prepared
from ppo_jax.cli.flags import (
    RUN_OPTIONS,
    FirstPass,
    given_of,
    is_on,
    optional,
    parse,
    selection_of,
    starting_point,
)
from ppo_jax.config import ConfigError, TrainConfig, commands
from ppo_jax.config.options import check_record
from ppo_jax.config.toml import to_toml
from ppo_jax.runs import terminal
from ppo_jax.runs.options import RunOptions
from ppo_jax.runs.trust import Given

PROGRAM = "ppo-jax train"
DOC = "Train an agent, and keep the run in a folder."
FREE_ON_RESUME = ("total_timesteps", "anneal_timesteps")


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax train`."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_prepared(lambda: _prepared(words), before=lambda: join(words))


def _prepared(arguments: list[str]) -> Work:
    """The training run that a command line describes, before anything is computed.

    Raises:
        ConfigError: options that cannot work.
    """
    resumed = None if asks_for_help(arguments) else _resumed(arguments)
    kept: dict[str, Any] = {}
    if resumed is None:
        base, origins = starting_point(arguments)
    else:
        base, kept = _saved_config(resumed, arguments), _saved_options(resumed)
        origins = dict.fromkeys((*configs.to_flat(base), *kept), f"run {resumed}")
    config, options = _parse(arguments, base, kept, origins=origins)
    if resumed is not None:
        _refuse_changes(base, config)
    configs.check(config)
    suites.check(config.env)
    check_record(options)
    if is_on("print_config", arguments):
        terminal.say(commands.shown(to_toml(config)))
        sys.exit(0)
    named = given_of(arguments)
    # The configuration has the names already; these only state what may be imported.
    given = Given(trust=named.trust, followed=frozenset(named.named))
    return lambda: _train(config, options, given)


def _train(config: TrainConfig, options: RunOptions, given: Given) -> int:
    from ppo_jax.experiment import train

    return train(config, options, given=given).exit_code


def _parse(
    arguments: list[str],
    base: TrainConfig,
    kept: dict[str, Any],
    *,
    origins: dict[str, str] | None = None,
) -> tuple[TrainConfig, RunOptions]:
    """Flags on top of a configuration and of the run options of a resumed run."""
    more = RUN_OPTIONS | CLUSTER_OPTIONS
    config, own = parse(
        arguments, base, more=more, kept=kept, program=PROGRAM, doc=DOC, origins=origins
    )
    return config, RunOptions(**{name: own[name] for name in RUN_OPTIONS})


def _saved_options(run_dir: Path) -> dict[str, Any]:
    from ppo_jax.runs.folder import read_run_options

    return read_run_options(run_dir)


def _resumed(arguments: list[str]) -> Path | None:
    """The folder that --resume names."""
    first = FirstPass(add_help=False, allow_abbrev=False)
    first.add_argument("--resume", type=optional)
    found = first.parse_known_args(arguments)[0].resume
    return None if found is None else Path(found)


def _saved_config(run_dir: Path, arguments: list[str]) -> TrainConfig:
    from ppo_jax.runs.folder import read_config

    given = selection_of(arguments)
    if given.preset is not None or given.config is not None:
        raise ConfigError(
            "--resume continues a run with the values it has: no --preset, no --config"
        )
    return read_config(run_dir, given_of(arguments))


def _refuse_changes(saved: TrainConfig, wanted: TrainConfig) -> None:
    """Refuse other values for a resumed run; only its length may change."""
    before, after = configs.to_flat(saved), configs.to_flat(wanted)
    changed = [n for n in before if n not in FREE_ON_RESUME and before[n] != after.get(n)]
    if changed:
        listed = ", ".join(f"{n} (was {before[n]}, given {after.get(n)})" for n in changed)
        raise ConfigError(
            f"--resume continues the same run, but these differ: {listed}; leave them out, "
            "or start a new run"
        )
