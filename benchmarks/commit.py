"""Which code a table was measured with: one commit for all its rows, or no table."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks.table import Row, read

CHANGED = "+changes"
UNKNOWN = "unknown"
# What is measured; results are written while it is.
MEASURED = ("ppo_jax", "benchmarks", ":(exclude)benchmarks/results")
LENGTH = 12


def of(folder: Path) -> str:
    """The commit of the code in a folder, as results record it.

    Args:
        folder: of the checkout.

    Returns:
        Its first LENGTH digits; CHANGED follows where code was changed after it; UNKNOWN where
        there is no git or no checkout.
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
    """Refuse, before anything is measured, what would mix code of different commits in a table.

    Args:
        paths: of the CSVs to which rows are to be added.
        commit: of the rows to come.
        committed: whether these tables are those of the repository: then the code is to be a
            commit that others can check out.
        fresh: whether rows of other commits are dropped.

    Raises:
        SystemExit: which file, which commits, and what to do.
    """
    if committed and (commit == UNKNOWN or commit.endswith(CHANGED)):
        what = "is no checkout of git" if commit == UNKNOWN else "has changes after its commit"
        raise SystemExit(
            f"the code {what}, so nobody could measure it again: commit it, or keep the results "
            "elsewhere with --out FOLDER"
        )
    for path in () if fresh else paths:
        others = [*dict.fromkeys(c for c in commits(read(path)) if c != commit)]
        if others:
            raise SystemExit(
                f"{path} has rows of {_named(others)}, this is {commit}: give --fresh to drop "
                "them, or keep the new ones elsewhere with --out FOLDER"
            )


def commits(rows: Iterable[Row]) -> list[str]:
    """Each row's commit; "" where none was recorded."""
    return [row.get("commit") or "" for row in rows]


def one(rows: Iterable[Row], name: str) -> str:
    """The commit of all rows of a table; "" if none was recorded.

    Args:
        rows: of the table.
        name: of it, for the message.

    Raises:
        SystemExit: there are several.
    """
    found = [*dict.fromkeys(commits(rows))]
    if len(found) > 1:
        raise SystemExit(
            f"{name} has rows of {_named(found)}: they cannot stand in one table; measure them "
            "again with --fresh"
        )
    return found[0] if found else ""


def _named(found: list[str]) -> str:
    return " and of ".join(f"commit {c}" if c else "no recorded commit" for c in found)
