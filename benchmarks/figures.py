"""The figures that are drawn from committed tables.

python -m benchmarks.figures          redraws them in seconds; nothing is measured
"""

from pathlib import Path

from benchmarks import clip, family, learning, pong
from benchmarks.accelerator import report
from benchmarks.table import RESULTS, read
from benchmarks.throughput import scaling, tables

IMAGES = Path(__file__).parent.parent / "docs/images"


def draw_family(out: Path) -> None:
    """Learning curves of all algorithms."""
    family.plot(out / "family.png")


def draw_learning(out: Path) -> None:
    """Returns of the seeds of each task."""
    learning.plot(learning.rows_of_all(), learning.seeds_of_all(), out / "learning.png")


def draw_scaling(out: Path) -> None:
    """Time per environment step against the sizes of a run, with the newest jax in the table."""
    rows = read(RESULTS / "throughput_scaling.csv")
    scaling.plot(rows, rows[-1]["jax"], out / "throughput_scaling.png")


def main() -> None:
    """Draw all of them."""
    for draw in (draw_family, draw_learning, draw_scaling):
        draw(RESULTS)
    tables.plot(RESULTS)
    report.plot(RESULTS, RESULTS / "accelerator.png")
    pong.plot()
    clip.main()


if __name__ == "__main__":
    main()
