"""`python -m ppo_jax.train` in a process that may kill itself while it writes.

PPO_JAX_SOAK_KILL=N: SIGKILL instead of the N-th operation that changes the run's folder: a file
opened for writing, renamed or deleted, a directory made. The operations are those that Python
reports to audit hooks, so that nothing here knows how a checkpoint is written.
"""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR


def kill_at(number: int, folder: str) -> None:
    """Let this process die at an operation.

    Args:
        number: of the operation, from 1.
        folder: of the run, absolute.
    """
    counter, seen = itertools.count(1), folder.encode()

    def changes(event: str, arguments: Any) -> bool:
        if event == "open":
            flags = arguments[2] if len(arguments) > 2 else 0
            if not isinstance(flags, int) or not flags & WRITING:
                return False
        elif event not in CHANGES:
            return False
        path = arguments[0]
        if isinstance(path, int):
            return False
        name = os.fsencode(path)
        # A relative name belongs to a directory that was opened before.
        return seen in name or not name.startswith(b"/")

    def hook(event: str, arguments: Any) -> None:
        if changes(event, arguments) and next(counter) == number:
            os.write(2, f"\nkilled at: {event} {Path(os.fsdecode(arguments[0])).name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    """The command, with the hook if the environment asks for it."""
    from ppo_jax.cli.train import main as train

    number = int(os.environ.get("PPO_JAX_SOAK_KILL", "0"))
    if number:
        kill_at(number, os.environ["PPO_JAX_SOAK_FOLDER"])
    train()


if __name__ == "__main__":
    main()
