"""The commands that messages and help texts name, as they can be pasted into the same terminal.

Texts of the package name a command `ppo-jax COMMAND`; the command line shows them through `shown`.
"""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

# Set by run.py: the words in front of a command of its own.
VARIABLE = "PPO_JAX_COMMAND"
NAME = "ppo-jax"
# The name in front of a command; not as a part of a path or of another name.
NAMED = re.compile(rf"(?<![\w./-]){NAME}(?= +[a-zA-Z-]|$)", re.MULTILINE)


def command(*words: object) -> str:
    """A command of ppo_jax, started as the present one was.

    Args:
        words: name of the command and its arguments, quoted where a shell needs it.
    """
    return " ".join([prefix(), *(shlex.quote(str(word)) for word in words)])


def shown(text: str) -> str:
    """A text in which `ppo-jax COMMAND` is written as the user started this process; in a process
    that was not started by a command of ppo_jax, the text as it is."""
    words = started()
    return NAMED.sub(lambda _: words, text) if words else text


def prefix() -> str:
    """The words in front of a command: "ppo-jax", "python3 run.py" or "python -m ppo_jax"."""
    return started() or "python -m ppo_jax"


def started() -> str:
    """The words in front of a command as the user wrote them, with the path of the program where a
    shell does not find it without one; "" for a process that was started otherwise."""
    given = os.environ.get(VARIABLE)
    if given:
        return given
    program = Path(sys.argv[0] or ".")
    if program.name == NAME:
        found = shutil.which(NAME)
        same = found is None or not program.exists() or Path(found).samefile(program)
        return NAME if same else shlex.quote(os.path.relpath(program))
    python, *words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    if module and module[0].partition(".")[0] == "ppo_jax":
        return f"{shlex.quote(python)} -m ppo_jax"
    return ""
