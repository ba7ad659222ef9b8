"""The pip commands that messages suggest, for the Python environment of this process."""

import importlib.metadata
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

from ppo_jax.config import commands

PACKAGE = "ppo_jax"


def command(requirement: str) -> str:
    """The command that installs a package, or an extra of ppo_jax from the place ppo_jax came from.

    ppo_jax is not on a package index, so the command for an extra names the clone: with `-e` where
    Python uses the files of the clone, and without it where they were copied at installation. A
    process that run.py started names run.py.

    Args:
        requirement: the requirement as pip takes it, such as "gymnasium[mujoco]"; "[brax]" is the
            extra of ppo_jax with that name.
    """
    if not requirement.startswith("["):
        return f'{pip()} install "{requirement}"'
    if os.environ.get(commands.VARIABLE):  # run.py installs into the environment that it made
        return commands.command("install", requirement[1:-1])
    beside = Path(__file__).resolve().parents[2]
    if (beside / "pyproject.toml").exists():
        return f'{pip()} install -e "{_clone(beside)}{requirement}"'
    clone = _installed_from()
    if clone is not None:
        return f'{pip()} install "{_clone(clone)}{requirement}"'
    return f'{pip()} install ".{requirement}" in a clone of ppo_jax'


def pip() -> str:
    """The command `pip` of this Python environment: "pip" where a shell finds that one."""
    found, here = shutil.which("pip"), Path(sys.executable).parent
    if found is not None and Path(found).parent == here:
        return "pip"
    if not sys.executable:
        return "pip"
    return f"{shlex.quote(_short(Path(sys.executable)))} -m pip"


def _clone(folder: Path) -> str:
    """The path of a clone; pip would take a relative path of one word for the name of a package."""
    return "." if _short(folder) == "." else str(folder)


def _short(path: Path) -> str:
    """A path relative to the current directory, if it is below it."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # the current directory was deleted; another drive
        return str(path)
    return str(path) if relative.startswith("..") else relative


def _installed_from() -> Path | None:
    """The folder that pip installed ppo_jax from, if it still exists."""
    try:
        text = importlib.metadata.distribution(PACKAGE).read_text("direct_url.json")
        url = urlparse(json.loads(text or "{}").get("url", ""))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    folder = Path(unquote(url.path))
    there = url.scheme == "file" and (folder / "pyproject.toml").exists()
    return folder if there else None
