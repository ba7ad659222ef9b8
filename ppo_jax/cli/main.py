"""`ppo-jax COMMAND`, the same as `python -m ppo_jax COMMAND` and `python3 run.py COMMAND`."""

import importlib
import shlex
import sys
from typing import NoReturn

import ppo_jax
from ppo_jax.cli.listing import wrapped
from ppo_jax.config import commands
from ppo_jax.runs import terminal

# Command -> (module with `main`, what it does). A module is imported when its command is used.
COMMANDS = {
    "train": ("ppo_jax.cli.train", "train an agent, and keep the run in a folder"),
    "evaluate": ("ppo_jax.cli.evaluate", "evaluate a trained agent, and record episodes"),
    "play": ("ppo_jax.cli.play", "watch a trained agent in the terminal"),
    "sweep": (
        "ppo_jax.cli.sweep",
        "train all combinations of hyperparameters and seeds at once",
    ),
    "plot": ("ppo_jax.cli.plot", "draw the learning curves of runs and sweeps"),
    "export": ("ppo_jax.cli.export", "write an agent to a file that needs no ppo_jax"),
    "zoo": ("ppo_jax.cli.zoo", "list, watch and verify the trained agents of the package"),
    "rlhf": ("ppo_jax.cli.rlhf", "train language models from preferences and rewards"),
    "envs": (
        "ppo_jax.cli.envs",
        "list the suites of environments, or the environments of one suite",
    ),
    "presets": ("ppo_jax.cli.presets", "list the presets of tuned hyperparameters"),
    "algorithms": ("ppo_jax.cli.algorithms", "list the algorithms"),
    "check-env": ("ppo_jax.cli.check_env", "test an environment of your own for mistakes"),
    "benchmark": ("ppo_jax.cli.benchmark", "list the benchmarks of the repository, or run one"),
}

NAME = "ppo-jax"


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command named by the first word, with the words that follow it."""
    words = sys.argv[1:] if arguments is None else arguments
    terminal.settle()
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help"):
        terminal.say(usage())
        sys.exit(0 if words else 2)
    if words[0] in ("-V", "--version"):
        terminal.say(f"ppo_jax {ppo_jax.__version__}")
        sys.exit(0)
    if words[0] not in COMMANDS:
        terminal.complain(commands.shown(f"error: {_unknown(words)}"))
        sys.exit(2)
    importlib.import_module(COMMANDS[words[0]][0]).main(words[1:])
    sys.exit(0)


def _unknown(words: list[str]) -> str:
    """The message for a first word that is no command."""
    from ppo_jax.cli.words import commands_with
    from ppo_jax.config.errors import did_you_mean

    if not words[0].startswith("-"):
        return f"unknown command {words[0]!r}; {did_you_mean(words[0], COMMANDS)}; see --help"
    found = commands_with(words[0])[:1]
    more = f"name a command first: {found[0]} {shlex.join(words)}" if found else "see --help"
    return f"unknown option {words[0].partition('=')[0]}; {more}"


def usage() -> str:
    """The text of --help."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, (_, text) in COMMANDS.items()]
    text = "\n".join(
        [
            f"usage: {NAME} COMMAND ...",
            "",
            "PPO and related policy-gradient algorithms in JAX.",
            "",
            "commands:",
            *lines,
            "",
            f"`{NAME} COMMAND --help` lists the options of a command.",
            "",
            f"`{NAME} --version` prints the version.",
            "",
            "A first run, on the default environment CartPole-v1:",
            f"  {NAME} train --run-dir runs/first",
            f"  {NAME} evaluate runs/first --gif first.gif",
        ]
    )
    return wrapped(text)
