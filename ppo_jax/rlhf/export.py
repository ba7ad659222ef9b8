"""Models that leave a run: folders that are there whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

from ppo_jax.runs import files


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place and move it there.

    Args:
        folder: what is there already is replaced once the new one is whole.
        write: fills an empty folder.

    Raises:
        OSError: the disk refused; what was there before is untouched.
    """
    temporary, earlier = (folder.with_name(files.temporary_name()) for _ in range(2))
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        files.sync_directory(temporary)
        if os.path.lexists(folder):
            folder.rename(earlier)
        temporary.rename(folder)
    finally:
        files.delete(temporary)
        files.delete(earlier)
    files.sync_directory(folder.parent)
