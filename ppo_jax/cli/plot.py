"""`ppo-jax plot`: the learning curves of runs as one figure."""

import sys
from typing import NoReturn

from ppo_jax.cli.errors import exit_without_device
from ppo_jax.cli.flags import positional

PROGRAM = "ppo-jax plot"


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax plot`, the same as `python -m ppo_jax.plot`."""
    exit_without_device(lambda: _plot(sys.argv[1:] if arguments is None else arguments))


def _plot(arguments: list[str]) -> int:
    from ppo_jax.analysis.plot import plot

    return positional(plot, arguments, PROGRAM)
