"""metrics.jsonl: one line of numbers per logged update."""

import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax.runs import files, manifest

# Statistics of the finished episodes: averages over episodes, not over updates.
BY_EPISODE = ("episode_return", "episode_length")
SPREAD = "episode_return_std"
# Columns with the number of units made, such as environment steps: the name of the unit, except
# for environment steps.
POSITIONS = ("env_step", "responses", "sequences", "agent_updates")
# Of a merged row: the number of updates in which each metric had a value, and the first update.
KNOWN, FIRST = "_known", "_first"
MOST = 256


class GrowingFile:
    """A text file that is only appended to, with its digest.

    Args:
        folder: folder that contains a manifest.
        name: name of the file.
        lines: initial content, lines with their newline characters.
    """

    def __init__(self, folder: Path, name: str, lines: Iterable[str]) -> None:
        self.path = folder / name
        with manifest.replacing(folder, name, grows=True) as file:
            file.writelines(line.encode() for line in lines)
        self._digest, self.length = hashlib.sha256(), 0
        with files.opened(self.path) as file:
            while part := file.read(2**20):
                self._digest.update(part)
                self.length += len(part)
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = io.FileIO(os.open(self.path, flags), "a")
        self._missed, self._last = False, dict[str, Any]()

    def append(self, lines: Iterable[str]) -> None:
        """Write lines to the operating system; after an error, none of them are in the file.

        Raises:
            OSError: the lines cannot be written.
        """
        data = "".join(lines).encode()
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError:
            with suppress(OSError):
                self._file.truncate(self.length)
            raise
        self._digest.update(data)
        self.length += len(data)

    def synced(self) -> manifest.Entry:
        """Write the appended lines to the disk, and return the entry for the manifest.

        Raises:
            OSError: the file cannot be written to the disk.
        """
        if self._file.closed:
            return self._last
        os.fsync(self._file.fileno())
        if not self._missed and not self._is_there():
            self._missed = True
            warnings.warn(
                f"{self.path} was deleted or replaced while the run was writing it: new lines are "
                "lost until the run is resumed",
                stacklevel=2,
            )
        self._last = {"bytes": self.length, "sha256": self._digest.hexdigest(), "grows": True}
        return self._last

    def _is_there(self) -> bool:
        with suppress(OSError):
            return self.path.lstat().st_ino == os.fstat(self._file.fileno()).st_ino
        return False

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self.synced()
            self._file.close()


class MetricsLog:
    """metrics.jsonl: one line per logged update; values are numbers or null.

    Args:
        path: path of the file.
        resume_at: number of the last update to keep; later lines are dropped, because these updates
            will be repeated. 0 starts a new file.
        trackers: trackers (`trackers.start`), which receive the same rows.
    """

    def __init__(self, path: Path, resume_at: int, trackers: Sequence[Any] = ()) -> None:
        rows = (row for row in read_metrics(path) if row["update"] <= resume_at)
        self.file = GrowingFile(path.parent, path.name, (json.dumps(row) + "\n" for row in rows))
        self._trackers = trackers

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to the file and the trackers; if the disk is full, only warn."""
        try:
            self.file.append(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        except OSError as error:
            warnings.warn(f"metrics.jsonl cannot be written: {error}", stacklevel=1)
        for tracker in self._trackers:
            for row in rows:
                tracker.log(row)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        for tracker in self._trackers:
            tracker.close()


class Averaged:
    """Averages every `every` rows into one, so that the log covers all updates.

    Each metric is the mean over the rows since the previous line; it is null if no row has a value.
    Counts are summed; metrics whose names end in _min or _max are the minimum or maximum; returns
    and lengths are means over episodes, and their standard deviation is over all episodes.
    `update` and the number of units made are those of the last row.

    Args:
        every: number of updates per line; lines end at multiples of this number.
        counts: names of the metrics that are summed.
        begun: value of `left` at the end of an earlier session that stopped between two lines.
    """

    def __init__(
        self, every: int, counts: Collection[str], begun: list[dict[str, Any]] | None = None
    ) -> None:
        self.every, self.counts = every, {"episodes", *counts}
        self.left = [*begun] if begun else []

    def add(self, rows: list[dict[str, Any]], now: bool = False) -> list[dict[str, Any]]:
        """The lines completed by these rows; with `now`, also an incomplete last line."""
        lines = []
        for row in rows:
            self.left.append(row)
            if len(self.left) > MOST:  # bounds the memory if a line covers many updates
                self.left = [self._merged(self.left)]
            if row["update"] % self.every == 0 or (now and row is rows[-1]):
                lines += self.rest()
                self.left = []
        return lines

    def rest(self) -> list[dict[str, Any]]:
        """The rows since the last line, merged into at most one row. They stay in `left`."""
        one = self.left if len(self.left) < 2 else [self._merged(self.left)]
        return [{n: x for n, x in row.items() if n not in (KNOWN, FIRST)} for row in one]

    @property
    def before(self) -> int:
        """The update of the previous line."""
        return self.left[0].get(FIRST, self.left[0]["update"]) - 1 if self.left else 0

    def _merged(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        names = [
            n for n in dict.fromkeys(n for row in rows for n in row) if n not in (KNOWN, FIRST)
        ]
        last, first = rows[-1], rows[0].get(FIRST, rows[0]["update"])
        kept = ("update", *POSITIONS)
        merged = {n: last.get(n) if n in kept else self._one(rows, n) for n in names}
        known = {n: sum(_known(row, n) for row in rows) for n in names}
        return merged | {KNOWN: known, FIRST: first}

    def _one(self, rows: list[dict[str, Any]], name: str) -> Any:
        known = [row for row in rows if row.get(name) is not None]
        if not known:
            return None
        values = [row[name] for row in known]
        if name in self.counts:
            return sum(values)
        if name.endswith(("_min", "_max")):
            return min(values) if name.endswith("_min") else max(values)
        if name == SPREAD:
            return _spread(known)
        by_episode = name in BY_EPISODE and all("episodes" in row for row in known)
        return _mean(
            values, [row["episodes"] if by_episode else _known(row, name) for row in known]
        )


def _known(row: dict[str, Any], name: str) -> int:
    """The number of updates over which a value of a row was averaged."""
    return row.get(KNOWN, {}).get(name, 1) if row.get(name) is not None else 0


def _mean(values: Sequence[float], weights: Sequence[float]) -> float | None:
    total = sum(weights)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total if total else None


def _spread(rows: list[dict[str, Any]]) -> float | None:
    """The standard deviation of the returns of all episodes in several rows."""
    rows = [row for row in rows if row.get("episode_return") is not None and row.get("episodes")]
    counts = [row["episodes"] for row in rows]
    mean = _mean([row["episode_return"] for row in rows], counts)
    if mean is None:
        return None
    squares = [row[SPREAD] ** 2 + (row["episode_return"] - mean) ** 2 for row in rows]
    return math.sqrt(_mean(squares, counts) or 0.0)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl; incomplete lines left by a crash are skipped."""
    try:
        file = files.opened(path)
    except FileNotFoundError:
        return
    with io.TextIOWrapper(file, errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and "update" in row and row.keys() & {*POSITIONS}:
                yield row


def columns_of(unit: str) -> tuple[str, str]:
    """The names of two columns: the number of units made, and the number of units per second.

    Args:
        unit: unit of progress, a key of `terminal.UNITS`.
    """
    if unit == "env_steps":
        return "env_step", "steps_per_second"
    return unit, f"{unit}_per_second"


def position_of(row: dict[str, Any]) -> int:
    """The number of units made until a row of metrics.jsonl."""
    return int(next(row[name] for name in POSITIONS if name in row))


def rows_of(
    metrics: dict[str, np.ndarray],
    first_update: int,
    steps_per_update: int,
    rate: float,
    *,
    unit: str = "env_steps",
) -> list[dict[str, Any]]:
    """Convert the metrics of a chunk to rows of metrics.jsonl.

    Args:
        metrics: name -> [K], the metrics of K updates.
        first_update: number of the first update, counted from 1.
        steps_per_update: number of units per update, such as environment steps.
        rate: number of units per second during the chunk.
        unit: unit of progress, a key of `terminal.UNITS`.
    """
    position, speed = columns_of(unit)
    count = len(next(iter(metrics.values())))
    return [
        {
            "update": first_update + k,
            position: (first_update + k) * steps_per_update,
            **{name: _number(values[k]) for name, values in metrics.items()},
            speed: round(rate, 1),
        }
        for k in range(count)
    ]


def _number(x: np.ndarray) -> int | float | None:
    """A JSON number; NaN, which JSON does not have, becomes null."""
    if np.issubdtype(x.dtype, np.integer):
        return int(x)
    return float(x) if math.isfinite(x) else None
