"""The flags of several processes that train together, which are read before all others."""

import dataclasses
import warnings
from typing import Any

from ppo_jax.cli.errors import asks_for_help
from ppo_jax.cli.flags import HELP, FirstPass, is_on
from ppo_jax.config import ConfigError
from ppo_jax.config.options import parse as parse_value
from ppo_jax.runs import cluster
from ppo_jax.runs.cluster.options import ClusterOptions, place_of

CLUSTER_OPTIONS = {f.name: f for f in dataclasses.fields(ClusterOptions)}


def options_of(arguments: list[str]) -> ClusterOptions:
    """The options of a command line that describe the other processes.

    Raises:
        ConfigError: a value of the wrong type.
    """
    first = FirstPass(add_help=False, allow_abbrev=False)
    for name in CLUSTER_OPTIONS:
        flags = [f"--{name.replace('_', '-')}", *([f"--{name}"] if "_" in name else [])]
        if name != "distributed":
            first.add_argument(*flags, dest=name)
    words = [word for word in arguments if word not in HELP]
    given = vars(first.parse_known_args(words)[0])
    given["distributed"] = is_on("distributed", arguments)
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
    """Join the other processes that a command line describes, if it describes any. Of all these
    processes only the leading one prints warnings.

    Raises:
        ConfigError: `ppo_jax.runs.cluster.join` raised it.
    """
    if asks_for_help(arguments):
        return
    options = options_of(arguments)
    if place_of(options) is None:
        return
    cluster.join(options)
    if not cluster.current().leads:
        warnings.simplefilter("ignore")


def refuse(arguments: list[str], command: str, instead: str) -> None:
    """Refuse these flags where a command works in one process.

    Args:
        arguments: the command line.
        command: name of the command.
        instead: the correction that the message proposes.

    Raises:
        ConfigError: such a flag was given.
    """
    flags = {f"--{name.replace('_', '-')}" for name in CLUSTER_OPTIONS}
    given = [a for a in arguments if a.partition("=")[0].replace("_", "-") in flags]
    if given:
        raise ConfigError(f"{given[0]}: {command} works in one process; {instead}")
