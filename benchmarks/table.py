"""CSV files that keep the rows of earlier runs."""

import csv
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
    new = {tuple(row[column] for column in order) for row in rows}
    kept = [
        r
        for r in read(path)
        if tuple(r[column] for column in order) not in new
        and all(r[column] in values for column, values in order.items())
    ]

    def place(row: Row) -> list[int]:
        return [values.index(row[column]) for column, values in order.items()]

    merged = sorted(kept + rows, key=place)
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged)
    return merged
