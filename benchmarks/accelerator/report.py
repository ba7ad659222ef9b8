"""What was measured on accelerators, beside what others publish: a table and a figure."""

from pathlib import Path
from typing import Any

from benchmarks.table import RESULTS, Row, read

FILE = "accelerator.csv"
PUBLISHED = RESULTS / "accelerator_published.csv"
NOTHING = (
    "No accelerator has been measured yet: this project has had none at hand. Whoever has one can "
    "fill this page with one command, `python -m benchmarks.accelerator`."
)
HEAD = (
    "task", "value", "unit", "published", "compile s", "program MB", "precision", "of matmul",
    "of bandwidth",
)  # fmt: skip


def measured(folder: Path, every_device: bool = False) -> list[Row]:
    """The rows that hold a value, of accelerators alone unless every device is asked for."""
    rows = [row for row in read(folder / FILE) if row["value"]]
    return [row for row in rows if every_device or not row["device"].startswith("cpu")]


def published() -> list[Row]:
    """What others publish of the nearest task of ours: with system, device and source."""
    return read(PUBLISHED)


def table(rows: list[Row]) -> list[list[str]]:
    """Cells under HEAD, a line for each row."""
    marks = {row["task"]: row for row in published()}
    return [_cells(row, marks.get(row["task"])) for row in rows]


def _cells(row: Row, mark: Row | None) -> list[str]:
    beside = ""
    if mark is not None and row["section"] == "control":
        rate = float(mark["steps_per_second"])
        beside = f"{number(rate)} ({mark['system']}, {mark['device']})"
    cells = [row["task"], number(float(row["value"])) + spread(row), row["unit"], beside]
    cells += [row["compile_seconds"], row["program_mb"], row["precision"]]
    return cells + [percent(row[name]) for name in ("of_matmul", "of_bandwidth")]


def number(value: float) -> str:
    """With a thousands separator, or three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(row: Row) -> str:
    """The interval over seeds, or the slowest and fastest round."""
    if not row["low"]:
        return ""
    return f" [{number(float(row['low']))}, {number(float(row['high']))}]"


def percent(share: str) -> str:
    """A share as a percentage."""
    return f"{100 * float(share):.3g} %" if share else ""


def markdown(folder: Path = RESULTS) -> str:
    """A table for each device, or that there is none."""
    every = folder.resolve() != RESULTS.resolve()
    rows = measured(folder, every_device=every)
    if not rows:
        return NOTHING + "\n"
    tables = []
    for device in dict.fromkeys(row["device"] for row in rows):
        lines = [f"{device}:", "", f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
        mine = [row for row in rows if row["device"] == device]
        lines += ["| " + " | ".join(cells) + " |" for cells in table(mine)]
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def plot(folder: Path, path: Path) -> None:
    """Environment steps per second of each task, and what others publish; no file where nothing
    was measured."""
    from matplotlib.figure import Figure

    every = folder.resolve() != RESULTS.resolve()
    rows = [r for r in measured(folder, every) if r["section"] == "control"]
    rows = [r for r in rows if not r["task"].startswith("ceilings")]
    if not rows:
        return
    names = list(dict.fromkeys(r["task"] for r in rows))[::-1]
    figure = Figure(figsize=(9, 0.35 * len(names) + 1.6), layout="constrained")
    ax = figure.add_subplot()
    for device in dict.fromkeys(r["device"] for r in rows):
        mine = [r for r in rows if r["device"] == device]
        _points(ax, names, mine, "value", marker="o", label=f"ppo_jax, {device}")
    theirs = [m for m in published() if m["task"] in names]
    for marker, system in zip("Ds^v", dict.fromkeys(m["system"] for m in theirs), strict=False):
        found = [m for m in theirs if m["system"] == system]
        devices = " and ".join(dict.fromkeys(m["device"] for m in found))
        label = f"{system}, as published; device: {devices}"
        _points(ax, names, found, "steps_per_second", marker=marker, color="black", label=label)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_xscale("log")
    ax.set_xlabel("environment steps per second, training included")
    ax.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)


def _points(ax: Any, names: list[str], rows: list[Row], column: str, **style: Any) -> None:
    """A point for each row, on the line of its task."""
    rates = [float(row[column]) for row in rows]
    ax.plot(rates, [names.index(row["task"]) for row in rows], linestyle="none", **style)
