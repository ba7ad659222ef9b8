"""`ppo-jax presets`: the presets of tuned hyperparameters."""

import sys
from typing import NoReturn

from ppo_jax.cli import listing
from ppo_jax.cli.errors import exit_without_device
from ppo_jax.config.presets import PRESETS
from ppo_jax.runs import terminal

PROGRAM = "ppo-jax presets"
DOC = f"""usage: {PROGRAM}

List the presets: their names, environments, algorithms and numbers of environment steps.

`ppo-jax train --preset NAME` trains with a preset; the preset of an environment and an algorithm is
used by default. `ppo-jax train --preset NAME --print-config` prints its values."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax presets`."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_without_device(lambda: _list(words))


def _list(words: list[str]) -> int:
    if listing.only_help(words, PROGRAM, DOC):
        return 0
    rows: listing.Rows = [
        (name, values["env"], f"{values['algorithm']}, {values['total_timesteps'] / 1e6:g} M")
        for name, values in PRESETS.items()
    ]
    listing.show(rows)
    terminal.say(
        listing.wrapped(
            "\nM: million environment steps. `ppo-jax train --preset NAME --print-config` prints "
            "the values of a preset."
        )
    )
    return 0
