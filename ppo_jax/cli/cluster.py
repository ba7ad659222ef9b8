"""The flags of several processes that train together: read before all others."""

import dataclasses
import warnings
from typing import Any

from ppo_jax.cli.flags import FirstPass
from ppo_jax.config import ConfigError
from ppo_jax.config.options import parse as parse_value
from ppo_jax.runs import cluster
from ppo_jax.runs.cluster import ClusterOptions

CLUSTER_OPTIONS = {f.name: f for f in dataclasses.fields(ClusterOptions)}


def options_of(arguments: list[str]) -> ClusterOptions:
    """The options of a command line that say who the other processes are.

    Raises:
        ConfigError: a value that is none.
    """
    first = FirstPass(add_help=False, allow_abbrev=False)
    for name in CLUSTER_OPTIONS:
        flags = [f"--{name.replace('_', '-')}", *([f"--{name}"] if "_" in name else [])]
        if name == "distributed":
            first.add_argument(*flags, action="store_true")
        else:
            first.add_argument(*flags, dest=name)
    given = vars(first.parse_known_args(arguments)[0])
    values: dict[str, Any] = {}
    for name, text in given.items():
        if isinstance(text, str):
            try:
                values[name] = parse_value(CLUSTER_OPTIONS[name], text)
            except ValueError as error:
                if isinstance(error, ConfigError):
                    raise
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {text!r}; it must be a number"
                ) from error
        elif text is not None:
            values[name] = text
    return ClusterOptions(**values)


def join(arguments: list[str]) -> None:
    """Join the other processes that a command line speaks of; of these one alone says what all
    would.

    Raises:
        ConfigError: as `ppo_jax.runs.cluster.join`.
    """
    cluster.join(options_of(arguments))
    if not cluster.current().leads:
        warnings.simplefilter("ignore")


def refuse(arguments: list[str], command: str, instead: str) -> None:
    """Refuse these flags where a command works in one process.

    Args:
        arguments: its command line.
        command: its name.
        instead: what to do.

    Raises:
        ConfigError: the flag that was given.
    """
    flags = {f"--{name.replace('_', '-')}" for name in CLUSTER_OPTIONS}
    given = [a for a in arguments if a.partition("=")[0].replace("_", "-") in flags]
    if given:
        raise ConfigError(f"{given[0]}: {command} works in one process; {instead}")
