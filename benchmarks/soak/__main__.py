"""Test runs against killed processes, damaged files, a full disk and long durations.

python -m benchmarks.soak                              the whole test, at most 30 minutes of kills
python -m benchmarks.soak --only damage --damages 100  one part of the test, with fewer cases

The table is written to benchmarks/results/soak.csv. The exit code is 1 if a number was wrong
without a message, or if there was a traceback.
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
    """Test runs against faults.

    Attributes:
        minutes: maximum number of minutes of training with kills.
        kills: number of kills by SIGKILL.
        damages: number of damaged files, over all kinds of folders.
        fills: number of times that the small disk is filled.
        steps: environment steps of the run whose memory is measured.
        jobs: number of runs that are trained and killed in parallel.
        seed: random seed of the times of kills and of the damage.
        only: parts of the test to run: kills, damage, disk, memory.
        out: file of the table, as CSV; --out "" writes none.
        folder: folder of the runs; by default a temporary one, which is deleted at the end.
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
    """Run the chosen parts of the test one after the other.

    Args:
        options: sizes and chosen parts of the test.
        folder: folder of the runs.
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
    """Print the table, and examples of wrong results and tracebacks."""
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
    """Write the table as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(options: Options) -> int:
    """Run the test and print the table; returns the exit code."""
    unknown = [name for name in options.only if name not in PARTS]
    if unknown:
        raise SystemExit(f"error: --only: unknown {unknown[0]!r}; choose from: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="ppo_jax-soak-") as temporary:
        found = parts_of(options, (options.folder or Path(temporary)).absolute())
    show(found)
    if options.out:
        write(Path(options.out), [tally.row() for tally in found])
    return int(any(tally.bad for tally in found))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
