"""`python -m ppo_jax.export`."""

import sys
from typing import NoReturn

from ppo_jax.cli.errors import exit_with
from ppo_jax.cli.flags import positional

PROGRAM = "python -m ppo_jax.export"


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command."""
    exit_with(lambda: _export(sys.argv[1:] if arguments is None else arguments))


def _export(arguments: list[str]) -> int:
    from ppo_jax.export import export_command

    return positional(export_command, arguments, PROGRAM)
