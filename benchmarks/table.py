"""CSV files that keep the rows of earlier runs."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """Its rows as text; none if it is not there."""
    if not path.exists():
        return []
    with path.open() as file:
        return [*csv.DictReader(file)]


def merge(path: Path, rows: list[Row], order: dict[str, list[str]]) -> list[Row]:
    """Replace what was measured anew, keep the rest, and write it all in order.

    Args:
        path: the file.
        rows: of now; those there that agree with one of them in the columns of `order` go.
        order: column -> its values in the order in which rows are to stand; others go too.
    """

    def place(row: Row) -> list[int]:
        return [values.index(row[column]) for column, values in order.items()]

    def known(row: Row) -> bool:
        return all(row[column] in values for column, values in order.items())

    return replace(path, rows, tuple(order), place, known)


def replace(
    path: Path,
    rows: list[Row],
    same: Sequence[str],
    place: Callable[[Row], Any],
    known: Callable[[Row], bool] = lambda row: True,
) -> list[Row]:
    """Write rows in place of the old ones that agree with one of them in some columns.

    Args:
        path: the file.
        rows: of now, all with the same columns.
        same: the columns.
        place: what rows are sorted by.
        known: which of the old rows may stay at all.
    """
    new = {tuple(str(row[column]) for column in same) for row in rows}
    kept = [r for r in read(path) if known(r) and tuple(r[c] for c in same) not in new]
    merged = sorted(kept + rows, key=place)
    path.parent.mkdir(parents=True, exist_ok=True)
    # All or nothing: a run that is cut keeps what was there.
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged)
    temporary.replace(path)
    return merged
