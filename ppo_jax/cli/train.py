"""`python -m ppo_jax.train`."""

import sys
from pathlib import Path
from typing import Any, NoReturn

from ppo_jax import config as configs
from ppo_jax.cli.cluster import CLUSTER_OPTIONS, join
from ppo_jax.cli.errors import exit_with
from ppo_jax.cli.flags import RUN_OPTIONS, FirstPass, base_config, given_of, parse, selection_of
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.experiment import RunOptions
from ppo_jax.experiment import train as train_agent
from ppo_jax.runs.trust import Given

PROGRAM = "python -m ppo_jax.train"
FREE_ON_RESUME = ("total_timesteps", "anneal_timesteps")


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_with(lambda: _train(words), before=lambda: join(words))


def _train(arguments: list[str]) -> int:
    from ppo_jax.runs.folder import read_run_options

    resumed = _resumed(arguments)
    base = base_config(arguments) if resumed is None else _saved_config(resumed, arguments)
    kept = {} if resumed is None else read_run_options(resumed)
    config, options = _parse(arguments, base, kept)
    if resumed is not None:
        _refuse_changes(base, config)
    configs.check(config)
    named = given_of(arguments)
    # The configuration has the names already; here they only say what may be imported.
    given = Given(trust=named.trust, followed=frozenset(named.named))
    return train_agent(config, options, given=given).exit_code


def _parse(
    arguments: list[str], base: TrainConfig, kept: dict[str, Any]
) -> tuple[TrainConfig, RunOptions]:
    """Flags on top of a configuration and of the run options that a resumed run had."""
    doc = "Train an agent and keep the run in a directory."
    more = RUN_OPTIONS | CLUSTER_OPTIONS
    config, own = parse(arguments, base, more=more, kept=kept, program=PROGRAM, doc=doc)
    return config, RunOptions(**{name: own[name] for name in RUN_OPTIONS})


def _resumed(arguments: list[str]) -> Path | None:
    """The run that --resume names."""
    first = FirstPass(add_help=False, allow_abbrev=False)
    first.add_argument("--resume", type=Path)
    return first.parse_known_args(arguments)[0].resume


def _saved_config(run_dir: Path, arguments: list[str]) -> TrainConfig:
    from ppo_jax.runs.folder import read_config

    given = selection_of(arguments)
    if given.preset is not None or given.config is not None:
        raise ConfigError("--resume goes on with its own values: no --preset, no --config")
    return read_config(run_dir, given_of(arguments))


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
