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

# Statistics of the episodes that ended: over all of them, not over the updates they ended in.
BY_EPISODE = ("episode_return", "episode_length")
SPREAD = "episode_return_std"
# Of a row that stands for several: how many had each number, and the first of them.
KNOWN, FIRST = "_known", "_first"
MOST = 256


class GrowingFile:
    """A file of lines that is only added to, and its digest.

    Args:
        folder: with a manifest.
        name: of the file.
        lines: that it begins with, each with its end.
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
        """Hand lines to the operating system, all of them or none.

        Raises:
            OSError: the disk refused.
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
        """Bring what was added to the disk: its entry for the manifest.

        Raises:
            OSError: the disk refused.
        """
        if self._file.closed:
            return self._last
        os.fsync(self._file.fileno())
        if not self._missed and not self._is_there():
            self._missed = True
            warnings.warn(
                f"{self.path} was deleted or replaced while the run wrote it: what is added is "
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
        """Nothing more is added."""
        with suppress(OSError):
            self.synced()
            self._file.close()


class MetricsLog:
    """metrics.jsonl: one line per logged update, numbers or null.

    Args:
        path: of the file.
        resume_at: lines of later updates are dropped, for they will be made again; 0 starts anew.
        trackers: with log(row) and close(), told the same rows (`trackers.start`).
    """

    def __init__(self, path: Path, resume_at: int, trackers: Sequence[Any] = ()) -> None:
        rows = (row for row in read_metrics(path) if row["update"] <= resume_at)
        self.file = GrowingFile(path.parent, path.name, (json.dumps(row) + "\n" for row in rows))
        self._trackers = trackers

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows and hand them to the operating system; a full disk is no reason to stop."""
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
    """Every so many rows as one: what lies between two lines of the log is not lost.

    Each metric is the mean over the rows since the line before it; null where none has a number.
    Counts are sums; what ends in _min or _max is the least or the greatest; returns and lengths are
    means over the episodes, and their standard deviation is that of all episodes together. `update`
    and `env_step` are those of the last row.

    Args:
        every: number of updates per line; lines fall on its multiples.
        counts: metrics that are summed.
        begun: of `left`, where an earlier session stopped between two lines.
    """

    def __init__(
        self, every: int, counts: Collection[str], begun: list[dict[str, Any]] | None = None
    ) -> None:
        self.every, self.counts = every, {"episodes", *counts}
        self.left = [*begun] if begun else []

    def add(self, rows: list[dict[str, Any]], now: bool = False) -> list[dict[str, Any]]:
        """The lines that these rows complete; with `now` also one that is not complete."""
        lines = []
        for row in rows:
            self.left.append(row)
            if len(self.left) > MOST:  # a line of a million updates is no million rows in memory
                self.left = [self._merged(self.left)]
            if row["update"] % self.every == 0 or (now and row is rows[-1]):
                lines += self.rest()
                self.left = []
        return lines

    def rest(self) -> list[dict[str, Any]]:
        """The rows since the last line as one; none if there are none. They stay in `left`."""
        one = self.left if len(self.left) < 2 else [self._merged(self.left)]
        return [{n: x for n, x in row.items() if n not in (KNOWN, FIRST)} for row in one]

    @property
    def before(self) -> int:
        """The update of the last line."""
        return self.left[0].get(FIRST, self.left[0]["update"]) - 1 if self.left else 0

    def _merged(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        names = [
            n for n in dict.fromkeys(n for row in rows for n in row) if n not in (KNOWN, FIRST)
        ]
        last, first = rows[-1], rows[0].get(FIRST, rows[0]["update"])
        merged = {n: last[n] if n in ("update", "env_step") else self._one(rows, n) for n in names}
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
    """The number of updates that a value is the mean of."""
    return row.get(KNOWN, {}).get(name, 1) if row.get(name) is not None else 0


def _mean(values: Sequence[float], weights: Sequence[float]) -> float | None:
    total = sum(weights)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total if total else None


def _spread(rows: list[dict[str, Any]]) -> float | None:
    """The standard deviation of returns over the episodes of several rows."""
    rows = [row for row in rows if row.get("episode_return") is not None and row.get("episodes")]
    counts = [row["episodes"] for row in rows]
    mean = _mean([row["episode_return"] for row in rows], counts)
    if mean is None:
        return None
    squares = [row[SPREAD] ** 2 + (row["episode_return"] - mean) ** 2 for row in rows]
    return math.sqrt(_mean(squares, counts) or 0.0)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl; lines that a crash cut off are passed over."""
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
