"""The commit that a table was measured with, which must be the same for all of its rows."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks.table import Row, read

CHANGED = "+changes"
UNKNOWN = "unknown"
# Paths of the measured code; results change during a measurement.
MEASURED = ("ppo_jax", "benchmarks", ":(exclude)benchmarks/results")
LENGTH = 12


def of(folder: Path) -> str:
    """The commit of the code in a folder, as recorded in results.

    Args:
        folder: folder of the checkout.

    Returns:
        The first LENGTH digits of the commit, followed by CHANGED if code has uncommitted changes;
        UNKNOWN without git or outside a checkout.
    """
    found = _git(folder, "rev-parse", "HEAD")
    if found is None:
        return UNKNOWN
    changes = _git(folder, "status", "--porcelain", "--", *MEASURED)
    return found.strip()[:LENGTH] + (CHANGED if changes else "")


def _git(folder: Path, *words: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return None if result.returncode else result.stdout


def refuse(paths: Iterable[Path], commit: str, *, committed: bool, fresh: bool) -> None:
    """Refuse to mix results of different commits in one table, before anything is measured.

    Args:
        paths: paths of the CSV files that rows will be added to.
        commit: commit of the new rows.
        committed: whether the files are those of the repository, whose rows must come from a commit
            that others can check out.
        fresh: whether rows of other commits are dropped.

    Raises:
        SystemExit: the message names the file, the commits and a remedy.
    """
    if committed and (commit == UNKNOWN or commit.endswith(CHANGED)):
        what = "is not a git checkout" if commit == UNKNOWN else "has uncommitted changes"
        raise SystemExit(
            f"the code {what}, so the measurement could not be repeated: commit the code, or write "
            "the results to another folder with --out FOLDER"
        )
    for path in () if fresh else paths:
        others = [*dict.fromkeys(c for c in commits(read(path)) if c != commit)]
        if others:
            raise SystemExit(
                f"{path} has rows of {_named(others)}, but the code is {commit}: drop them with "
                "--fresh, or write the new rows to another folder with --out FOLDER"
            )


def commits(rows: Iterable[Row]) -> list[str]:
    """The commit of each row; "" for a row without a recorded commit."""
    return [row.get("commit") or "" for row in rows]


def one(rows: Iterable[Row], name: str) -> str:
    """The commit that all rows of a table share; "" if none was recorded.

    Args:
        rows: rows of the table.
        name: name of the table, for the message.

    Raises:
        SystemExit: the rows have different commits.
    """
    found = [*dict.fromkeys(commits(rows))]
    if len(found) > 1:
        raise SystemExit(
            f"{name} has rows of {_named(found)}, which must not be mixed in one table; measure "
            "them again with --fresh"
        )
    return found[0] if found else ""


def _named(found: list[str]) -> str:
    return " and of ".join(f"commit {c}" if c else "no recorded commit" for c in found)
