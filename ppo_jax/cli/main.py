"""`ppo-jax COMMAND`, the same as `python -m ppo_jax COMMAND`."""

import importlib
import sys
from typing import NoReturn

import ppo_jax

# Command -> (module with `main`, what it does). Modules are imported when they are asked for.
COMMANDS = {
    "train": ("ppo_jax.cli.train", "train an agent and keep the run in a directory"),
    "evaluate": ("ppo_jax.cli.evaluate", "play episodes with the agent of a run"),
    "sweep": (
        "ppo_jax.cli.sweep",
        "train many agents, seeds times hyperparameters, in one program",
    ),
    "plot": ("ppo_jax.cli.plot", "draw the learning curves of runs"),
    "export": ("ppo_jax.cli.export", "write an agent to a file that acts without ppo_jax"),
    "rlhf": ("ppo_jax.cli.rlhf", "train language models from preferences and rewards"),
    "check-env": ("ppo_jax.cli.check_env", "say what is wrong with an environment"),
}
PROGRAM = "ppo-jax"


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command named by the first word, with the words that follow it."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"ppo_jax {ppo_jax.__version__}")
        sys.exit(0)
    if words[0] not in COMMANDS:
        from ppo_jax.config.options import did_you_mean

        known = did_you_mean(words[0], COMMANDS)
        print(f"error: unknown command {words[0]!r}; {known}; see --help", file=sys.stderr)
        sys.exit(2)
    importlib.import_module(COMMANDS[words[0]][0]).main(words[1:])
    sys.exit(0)


def usage() -> str:
    """What --help prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND ...",
            "",
            "PPO and its family in JAX.",
            "",
            "commands:",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help lists the options of a command; {PROGRAM} --version prints "
            "the version.",
        ]
    )
