"""`ppo-jax algorithms`: the algorithms that --algorithm takes."""

import sys
from typing import NoReturn

from ppo_jax.algorithms.configs import CONFIGS
from ppo_jax.cli import listing
from ppo_jax.cli.errors import exit_without_device
from ppo_jax.config import references
from ppo_jax.runs import terminal

PROGRAM = "ppo-jax algorithms"
DOC = f"""usage: {PROGRAM}

List the algorithms that --algorithm takes.

`ppo-jax train --algorithm NAME --help` lists the hyperparameters of an algorithm. An algorithm of
your own is named MODULE or MODULE:NAME."""
ABOUT = {
    "reinforce": "REINFORCE, Monte-Carlo policy gradient over whole episodes (Williams 1992)",
    "actor_critic": "actor-critic with a Q-function as critic (Sutton et al. 2000)",
    "a2c": "advantage actor-critic, one gradient step per rollout (Mnih et al. 2016)",
    "trpo": "trust region policy optimisation (Schulman et al. 2015)",
    "ppo_kl": "PPO with a KL penalty, fixed or adaptive (Schulman et al. 2017)",
    "ppo": "PPO with the clipped surrogate objective (Schulman et al. 2017); the default",
    "reppo": "relative entropy pathwise policy optimisation (Voelcker et al. 2025)",
}


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax algorithms`."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_without_device(lambda: _list(words))


def _list(words: list[str]) -> int:
    if listing.only_help(words, PROGRAM, DOC):
        return 0
    rows: listing.Rows = [(name, ABOUT.get(name, "")) for name in CONFIGS]
    own = references.registered("algorithm")
    rows += [(name, f"registered by an installed package: {where}") for name, where in own.items()]
    listing.show(rows)
    terminal.say(
        listing.wrapped("\n`ppo-jax train --algorithm NAME --help` lists its hyperparameters.")
    )
    return 0
