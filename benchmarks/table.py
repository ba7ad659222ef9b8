"""Reading and writing of CSV files that keep rows of earlier runs."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of a CSV file as strings; [] if the file does not exist."""
    if not path.exists():
        return []
    with path.open() as file:
        return [*csv.DictReader(file)]


def merge(path: Path, rows: list[Row], order: dict[str, list[str]]) -> list[Row]:
    """Merge new rows into a CSV file and sort its rows.

    Args:
        path: path of the file.
        rows: new rows; an old row with the same values in the columns of `order` is replaced.
        order: columns by which rows are sorted, each with its values in their order; old rows with
            other values are dropped.

    Returns:
        All rows of the file.
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
    """Merge new rows into a CSV file, and sort its rows by a key.

    Args:
        path: path of the file.
        rows: new rows, all with the same columns.
        same: columns that identify a row; an old row with the same values is replaced.
        place: sort key, a function of a row.
        known: condition for keeping an old row.

    Returns:
        All rows of the file.
    """
    new = {tuple(str(row[column]) for column in same) for row in rows}
    kept = [r for r in read(path) if known(r) and tuple(r[c] for c in same) not in new]
    merged = sorted(kept + rows, key=place)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file is replaced as a whole, so that an interrupted run leaves the old one.
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged)
    temporary.replace(path)
    return merged
