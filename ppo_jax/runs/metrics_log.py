"""metrics.jsonl: one line of numbers per logged update."""

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


class MetricsLog:
    """metrics.jsonl: one line per logged update, numbers or null.

    Args:
        path: of the file.
        resume_at: lines of later updates are dropped, for they will be made again; 0 starts anew.
        trackers: with log(row) and close(), told the same rows (`trackers.start`).
    """

    def __init__(self, path: Path, resume_at: int, trackers: Sequence[Any] = ()) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w") as kept:
            rows = (row for row in read_metrics(path) if row["update"] <= resume_at)
            kept.writelines(json.dumps(row) + "\n" for row in rows)
        temporary.replace(path)
        self._file = path.open("a")
        self._trackers = trackers

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows and hand them to the operating system; a full disk is no reason to stop."""
        try:
            self._file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            self._file.flush()
        except OSError as error:
            warnings.warn(f"metrics.jsonl cannot be written: {error}", stacklevel=1)
        for tracker in self._trackers:
            for row in rows:
                tracker.log(row)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl; lines that a crash cut off are passed over."""
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and {"update", "env_step"} <= row.keys():
                yield row


def rows_of(
    metrics: dict[str, np.ndarray], first_update: int, steps_per_update: int, rate: float
) -> list[dict[str, Any]]:
    """Arrays of a chunk of updates as rows of metrics.jsonl.

    Args:
        metrics: name -> [K].
        first_update: number of the first of them, counted from 1.
        steps_per_update: environment steps of one rollout.
        rate: environment steps per second while they ran.
    """
    count = len(next(iter(metrics.values())))
    return [
        {
            "update": first_update + k,
            "env_step": (first_update + k) * steps_per_update,
            **{name: _number(values[k]) for name, values in metrics.items()},
            "steps_per_second": round(rate, 1),
        }
        for k in range(count)
    ]


def _number(x: np.ndarray) -> int | float | None:
    """A JSON number; NaN, which JSON does not have, is null."""
    if np.issubdtype(x.dtype, np.integer):
        return int(x)
    return float(x) if math.isfinite(x) else None
