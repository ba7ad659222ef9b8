"""Run `python -m ppo_jax.train` in a process that can kill itself at a file operation.

PPO_JAX_SOAK_KILL=N: kill the process with SIGKILL before the N-th operation that changes the run's
folder: opening a file for writing, renaming or deleting a file, making a directory. The operations
are those that Python reports to audit hooks, so that this module does not depend on how checkpoints
are written.
PPO_JAX_SOAK_NAMES: count only operations on files whose names match this regular expression.
"""

import itertools
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

# Audit event -> number of its arguments that are paths.
CHANGES = {
    "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.truncate": 1
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR


def kill_at(number: int, folder: str, names: str = "") -> None:
    """Install a hook that kills this process at a file operation.

    Args:
        number: number of the operation, from 1.
        folder: absolute path of the run's folder.
        names: regular expression for the names of files whose operations count.
    """
    counter, seen = itertools.count(1), folder.encode()

    def counts(path: Any) -> bool:
        if isinstance(path, int):
            return False
        name = os.fsencode(path)
        # A relative name refers to a directory that was opened before.
        inside = seen in name or not name.startswith(b"/")
        return inside and re.search(names, Path(os.fsdecode(name)).name) is not None

    def changed(event: str, arguments: Any) -> list[Any]:
        """The files that an operation changes."""
        if event == "open":
            flags = arguments[2] if len(arguments) > 2 else 0
            writes = isinstance(flags, int) and flags & WRITING
            return [arguments[0]] if writes else []
        return [*arguments[: CHANGES.get(event, 0)]]

    def hook(event: str, arguments: Any) -> None:
        files = [path for path in changed(event, arguments) if counts(path)]
        if files and next(counter) == number:
            words = " ".join(Path(os.fsdecode(path)).name for path in files)
            os.write(2, f"\nkilled at: {event} {words}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    """Run the command, with the hook if the environment variable sets it."""
    from ppo_jax.cli.train import main as train

    number = int(os.environ.get("PPO_JAX_SOAK_KILL", "0"))
    if number:
        names = os.environ.get("PPO_JAX_SOAK_NAMES", "")
        kill_at(number, os.environ["PPO_JAX_SOAK_FOLDER"], names)
    train()


if __name__ == "__main__":
    main()
