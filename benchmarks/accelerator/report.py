"""A table and a figure of the results on accelerators, with published results of other projects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.table import RESULTS, Row, read, replace
from ppo_jax.analysis import style

FILE = "accelerator.csv"
Show = Callable[[Row], str]
SEEDS_FILE = "accelerator_seeds.csv"
PUBLISHED = RESULTS / "accelerator_published.csv"
NOTHING = (
    "No accelerator has been measured yet. The command `python -m benchmarks.accelerator` measures "
    "one and fills this page."
)


def measured(folder: Path, every_device: bool = False) -> list[Row]:
    """The rows with a value; those of CPUs only if every device is included."""
    rows = [row for row in read(folder / FILE) if row["value"]]
    return [row for row in rows if every_device or not row["device"].startswith("cpu")]


def published() -> list[Row]:
    """Published results of other projects, each with the most similar task."""
    return read(PUBLISHED)


def tables(rows: list[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, column headings, lines of cells) for each device and section that has rows."""
    found = []
    for device in dict.fromkeys(row["device"] for row in rows):
        for section, columns in COLUMNS.items():
            mine = [r for r in rows if (r["device"], r["section"]) == (device, section)]
            if mine:
                lines = [[show(row) for show in columns.values()] for row in mine]
                found.append((f"{TITLES[section]}, {device}", [*columns], lines))
    return found


def markdown(folder: Path = RESULTS) -> str:
    """All tables as Markdown, or a sentence if there are no results."""
    every = folder.resolve() != RESULTS.resolve()
    parts = []
    for title, head, lines in tables(measured(folder, every_device=every)):
        shown = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
        parts.append("\n".join([f"{title}:", "", shown[0], "|" + "---|" * len(head), *shown[1:]]))
    return "\n\n".join(parts) + "\n" if parts else NOTHING + "\n"


def write_seeds(folder: Path, device: str, task: str, returns: list[float]) -> None:
    """Write the return of each seed of a task; they replace those of an earlier run.

    Args:
        folder: folder of the results.
        device: name of the device.
        task: name of the task.
        returns: mean return of each seed, from seed 0 on.
    """
    rows = [
        {"device": device, "task": task, "seed": seed, "return": x}
        for seed, x in enumerate(returns)
    ]
    replace(
        folder / SEEDS_FILE,
        rows,
        ("device", "task"),
        lambda row: (row["device"], row["task"], int(row["seed"])),
    )


def number(text: str) -> str:
    """A number with thousands separators, or with three significant digits."""
    value = float(text)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def value(row: Row) -> str:
    """The value, with the range over rounds or the confidence interval over seeds."""
    spread = f" [{number(row['low'])}, {number(row['high'])}]" if row["low"] else ""
    return number(row["value"]) + spread


def percent(column: str) -> Show:
    """A column with fractions, shown as percentages."""
    return lambda row: f"{100 * float(row[column]):.3g} %" if row[column] else ""


def times(column: str) -> Show:
    """A column with ratios, shown as multiples."""
    return lambda row: f"{float(row[column]):.2f}x" if row[column] else ""


def verdict(row: Row) -> str:
    """Whether a check passed."""
    return {"True": "yes", "False": "NO"}.get(row["passed"], "")


def beside(row: Row) -> str:
    """Published results for the task of a row."""
    found = [p for p in published() if p["task"] == row["task"]]
    shown = [f"{number(p['steps_per_second'])} ({p['system']}, {p['device']})" for p in found]
    return ", ".join(shown)


def plain(column: str) -> Show:
    """A column shown without changes."""
    return lambda row: row[column]


def date(row: Row) -> str:
    """The day of the run."""
    return row["started"][:10]


SPEED = {
    "compile s": plain("compile_seconds"),
    "program MB": plain("program_mb"),
    "precision": plain("precision"),
    "% of matmul rate": percent("of_matmul"),
    "% of bandwidth": percent("of_bandwidth"),
    "measured on": date,
}
TASK = {"task": plain("task")}
COLUMNS: dict[str, dict[str, Show]] = {
    "checks": TASK
    | {"value": value, "unit": plain("unit"), "limit": plain("threshold"), "passed": verdict}
    | {"measured on": date},
    "control": TASK | {"value": value, "unit": plain("unit"), "published": beside} | SPEED,
    "language": TASK
    | {"tokens/s": value, "generation": percent("generation_share"), "size": plain("note")}
    | SPEED,
    "peers": TASK
    | {"environment steps/s": value, "speed-up of ppo_jax": times("ratio")}
    | {"compile s": plain("compile_seconds"), "measured on": date},
    "learning": TASK
    | {"mean return [95 %]": value, "seeds": plain("seeds"), "steps": plain("env_steps")}
    | {"threshold": plain("threshold"), "seeds at threshold": percent("share_reaching")}
    | {"training": plain("note"), "measured on": date},
    "profile": TASK | {"value": value, "unit": plain("unit"), "share": percent("share")},
}
TITLES = {
    "checks": "Checks",
    "control": "Environment steps per second, training included",
    "language": "PPO on language models",
    "peers": "Other projects in the same run",
    "learning": "Returns of 64 seeds",
    "profile": "Parts of an update",
}


@style.styled
def plot(folder: Path, path: Path) -> None:
    """Plot environment steps per second of each task, with published results of other projects.

    Args:
        folder: folder of accelerator.csv.
        path: file of the figure; nothing is written if there are no results.
    """
    every = folder.resolve() != RESULTS.resolve()
    rows = [r for r in measured(folder, every) if r["section"] == "control"]
    rows = [r for r in rows if not r["task"].startswith("ceilings")]
    if not rows:
        return
    names = list(dict.fromkeys(r["task"] for r in rows))[::-1]
    figure, (ax,) = style.figure(size=(10, 0.35 * len(names) + 2.2))
    for device in dict.fromkeys(r["device"] for r in rows):
        mine = [r for r in rows if r["device"] == device]
        _points(ax, names, mine, "value", marker="o", label=f"ppo_jax, {device}")
    theirs = [m for m in published() if m["task"] in names]
    for marker, system in zip("Ds^v", dict.fromkeys(m["system"] for m in theirs), strict=False):
        found = [m for m in theirs if m["system"] == system]
        devices = " and ".join(dict.fromkeys(m["device"] for m in found))
        label = f"{system}, as published; device: {devices}"
        _points(ax, names, found, "steps_per_second", marker=marker, color=style.INK, label=label)
    ax.set_yticks(range(len(names)), names)
    style.log_axis(ax, "x")
    style.label(ax, x="environment steps per second, training included")
    style.legend(figure, width=70)
    style.write(figure, path)


def _points(ax: Any, names: list[str], rows: list[Row], column: str, **style: Any) -> None:
    """Draw a point for each row at the height of its task."""
    rates = [float(row[column]) for row in rows]
    ax.plot(rates, [names.index(row["task"]) for row in rows], linestyle="none", **style)
