"""Kills, damaged files, a disk that fills, and a long run: the table of what is survived.

python -m benchmarks.soak                              all of it, about 45 minutes on two cores
python -m benchmarks.soak --only damage --damages 100  one part of it, smaller

The table goes to benchmarks/results/soak.csv. Exit code 1 if a number was wrong without a message,
or if there was a traceback.
"""

import csv
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.soak.outcome import Tally

PARTS = ("kills", "damage", "disk", "memory")
RESULTS = Path(__file__).parents[1] / "results"


@dataclasses.dataclass(frozen=True)
class Options:
    """Try what a run survives.

    Attributes:
        minutes: of training with kills, at most.
        kills: number of kill -9.
        damages: number of damaged bits, bytes and files, over all kinds of folders.
        fills: number of times that the small disk is full.
        steps: environment steps of the run whose memory is watched.
        jobs: number of runs that are killed at the same time.
        seed: of the moments and the damages.
        only: parts to do: kills, damage, disk, memory.
        out: the table as CSV; none is written with --out "".
        folder: for the runs; by default a temporary one, deleted at the end.
    """

    minutes: float = 30.0
    kills: int = 200
    damages: int = 1000
    fills: int = 40
    steps: int = 50_000_000
    jobs: int = 2
    seed: int = 0
    only: tuple[str, ...] = PARTS
    out: str = str(RESULTS / "soak.csv")
    folder: Path | None = None


def parts_of(options: Options, folder: Path) -> list[Tally]:
    """Every part that is asked for, one after the other.

    Args:
        options: how much.
        folder: for the runs.
    """
    from benchmarks.soak import damage, disk, kills, memory

    cache, found = folder / "compiled", list[Tally]()
    cache.mkdir(parents=True, exist_ok=True)
    if "kills" in options.only:
        until = time.monotonic() + 60 * options.minutes
        found += kills.run(
            kills.Plan(options.kills, until, folder, cache, options.seed), options.jobs
        )
    if "damage" in options.only:
        found += damage.run(folder, options.damages, options.seed)
    if "disk" in options.only:
        found += disk.run(folder, cache, options.fills, options.seed)
    if "memory" in options.only:
        found += memory.run(folder, cache, options.steps)
    return found


def show(found: list[Tally]) -> None:
    """The table, and examples of what must not be."""
    rows = [tally.row() for tally in found]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for tally in found:
        for example in tally.examples:
            print(example)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The table as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(options: Options) -> int:
    """All parts, the table, the exit code."""
    unknown = [name for name in options.only if name not in PARTS]
    if unknown:
        raise SystemExit(f"error: there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="ppo_jax-soak-") as temporary:
        found = parts_of(options, (options.folder or Path(temporary)).absolute())
    show(found)
    if options.out:
        write(Path(options.out), [tally.row() for tally in found])
    return int(any(tally.bad for tally in found))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
