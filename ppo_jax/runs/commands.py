"""The commands that messages suggest, as they can be pasted into the same terminal."""

import os
import shlex
import sys
from pathlib import Path

# Set by run.py: the words in front of a command of its own.
VARIABLE = "PPO_JAX_COMMAND"


def command(*words: object) -> str:
    """A command of ppo_jax, started as the present one was.

    Args:
        words: name of the command and its arguments, quoted where a shell needs it.
    """
    return " ".join([prefix(), *(shlex.quote(str(word)) for word in words)])


def prefix() -> str:
    """The words in front of a command: "ppo-jax", "python3 run.py" or "python -m ppo_jax"."""
    given = os.environ.get(VARIABLE)
    if given:
        return given
    return "ppo-jax" if Path(sys.argv[0] or ".").name == "ppo-jax" else "python -m ppo_jax"
