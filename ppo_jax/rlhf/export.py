"""Models that leave a run: folders that are there whole or not at all."""

from collections.abc import Callable
from pathlib import Path

from ppo_jax.runs.checkpoint import delete


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place and move it there.

    Args:
        folder: what is there already is replaced.
        write: fills an empty folder.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    delete(temporary)
    temporary.mkdir(parents=True)
    write(temporary)
    delete(folder)
    temporary.replace(folder)
