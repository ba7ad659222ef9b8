"""Atomic writing of model folders: a folder is complete, or it does not exist."""

import os
from collections.abc import Callable
from pathlib import Path

from ppo_jax.runs import files


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under a temporary name and rename it to its final name.

    Args:
        folder: path of the folder; an existing folder is replaced once the new one is complete.
        write: function that writes the files into the empty folder it is called with.

    Raises:
        OSError: writing failed; an existing folder is unchanged.
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
