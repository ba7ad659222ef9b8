"""What was measured, as CSV, as the documentation's tables, and as a figure."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import Row, read, replace
from benchmarks.throughput.configurations import CONFIGURATIONS
from benchmarks.throughput.race import NAMES, Contestant

FIELDS = (
    "jax", "device", "configuration", "implementation", "env", "num_envs", "num_steps", "agents",
    "steps_per_second", "slowest", "fastest", "rounds", "speedup", "speedup_low", "speedup_high",
    "import_seconds", "compile_seconds", "first_update_seconds", "peak_mb", "why", "versions",
    "python", "cores", "processor",
)  # fmt: skip
KEY = ("jax", "device", "configuration", "implementation")
RACE = "throughput.csv"


def rows_of(field: Sequence[Contestant], jax: str) -> list[Row]:
    """A line for each contestant; `speedup` is ours over it, the median of the rounds in pairs."""
    rates = {c.name: [r["env_steps"] / r["seconds"] for r in c.rounds] for c in field if not c.why}
    device = next((c.ready["device"] for c in field if not c.why), "cpu")
    return [_row(c, rates, jax, device) for c in field]


def _row(c: Contestant, rates: dict[str, list[float]], jax: str, device: str) -> Row:
    row: dict[str, Any] = dict.fromkeys(FIELDS, "")
    row |= {
        "jax": jax,
        "device": device,
        "configuration": c.configuration.name,
        "implementation": NAMES[c.name],
        **{n: getattr(c.configuration, n) for n in ("env", "num_envs", "num_steps", "agents")},
        "why": c.why,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "processor": processor(),
    }
    if c.why:
        return row
    mine = np.array(rates[c.name])
    if "ours" in rates:
        pairs = np.array(rates["ours"]) / mine
        names = ("speedup_low", "speedup", "speedup_high")
        row |= dict(zip(names, np.quantile(pairs, (0.25, 0.5, 0.75)).round(3), strict=True))
    versions = {k: v for k, v in c.ready["versions"].items() if k != "jax"}
    return row | {
        "steps_per_second": round(float(np.median(mine))),
        "slowest": round(mine.min()),
        "fastest": round(mine.max()),
        "rounds": len(mine),
        **{n: c.ready[n] for n in ("import_seconds", "compile_seconds", "first_update_seconds")},
        "peak_mb": round(max(r["peak_bytes"] for r in c.rounds) / 2**20),
        "versions": " ".join(f"{k}={v}".replace(" ", ":") for k, v in versions.items()),
    }


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def keep_race(folder: Path, rows: list[Row]) -> None:
    """A race in place of the one before it: ratios of different runs do not stand side by side."""
    replace(folder / RACE, rows, KEY[:-1], place)


def place(row: Row) -> tuple[Any, ...]:
    """jax, then configurations and contestants in the order they are listed."""
    known, names = list(CONFIGURATIONS), list(NAMES.values())
    configuration, name = row.get("configuration", ""), row.get("implementation", "")
    return (
        [int(x) for x in str(row.get("jax", "0")).split(".") if x.isdigit()],
        str(row.get("device", "")),
        known.index(configuration) if configuration in known else len(known),
        configuration,
        names.index(name) if name in names else len(names),
    )


def race_markdown(folder: Path, device: str = "cpu") -> str:
    """Steps per second and how many times faster ppo_jax is, a table for each version of jax."""
    rows = [r for r in read(folder / RACE) if r["device"] == device]
    tables = []
    for jax in dict.fromkeys(r["jax"] for r in rows):
        mine = [r for r in rows if r["jax"] == jax]
        names = [n for n in NAMES.values() if any(r["implementation"] == n for r in mine)]
        cells = {(r["configuration"], r["implementation"]): r for r in mine}
        lines = [f"| jax {jax} | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for configuration in dict.fromkeys(r["configuration"] for r in mine):
            found = [cells.get((configuration, name)) for name in names]
            lines.append(f"| {configuration} | " + " | ".join(map(_cell, found)) + " |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def race_summary(folder: Path, device: str = "cpu") -> str:
    """The README's table, on the oldest jax: ppo_jax, and how many times faster it is than each."""
    rows = [r for r in read(folder / RACE) if r["device"] == device]
    rows = [r for r in rows if r["jax"] == rows[0]["jax"]]
    names = [n for n in NAMES.values() if n != NAMES["ours"]]
    cells = {(r["configuration"], r["implementation"]): r for r in rows}
    lines = [f"| | ppo_jax, steps/s | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for configuration in dict.fromkeys(r["configuration"] for r in rows):
        ours = cells.get((configuration, NAMES["ours"]))
        if ours is None or ours["why"]:
            continue
        found = (cells.get((configuration, name)) for name in names)
        ratios = [f"{float(r['speedup']):.1f}x" if r and not r["why"] else _cell(r) for r in found]
        lines.append(
            f"| {configuration} | {int(ours['steps_per_second']):,} | {' | '.join(ratios)} |"
        )
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["why"]:
        return row["why"] if "no answer" in row["why"] else "-"
    rate = f"{float(row['steps_per_second']) / 1000:,.3g} k"
    ours = row["implementation"] == NAMES["ours"] or not row["speedup"]
    return rate if ours else f"{rate} ({float(row['speedup']):.2f}x)"


def compile_markdown(folder: Path, device: str = "cpu") -> str:
    """Seconds to compile, and from the start of the process to the end of its first update."""
    rows = [r for r in read(folder / RACE) if r["device"] == device and not r["why"]]
    lines = [
        "| jax | configuration | implementation | compile s | first update s | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = [r[n] for n in ("jax", "configuration", "implementation", "compile_seconds")]
        cells += [r["first_update_seconds"], r["peak_mb"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot_race(folder: Path, device: str = "cpu") -> None:
    """Bars of steps per second, logarithmic: a group for each configuration."""
    from matplotlib.figure import Figure

    rows = [r for r in read(folder / RACE) if r["device"] == device and not r["why"]]
    versions = list(dict.fromkeys(r["jax"] for r in rows))
    figure = Figure(figsize=(10, 3.6 * len(versions)), layout="constrained")
    for place, jax in enumerate(versions):
        mine = [r for r in rows if r["jax"] == jax]
        configurations = list(dict.fromkeys(r["configuration"] for r in mine))
        names = [n for n in NAMES.values() if any(r["implementation"] == n for r in mine)]
        ax = figure.add_subplot(len(versions), 1, place + 1)
        width = 0.8 / len(names)
        for k, name in enumerate(names):
            found = {r["configuration"]: r for r in mine if r["implementation"] == name}
            x = [i + (k - (len(names) - 1) / 2) * width for i in range(len(configurations))]
            here = [(a, found[c]) for a, c in zip(x, configurations, strict=True) if c in found]
            middle = np.array([float(r["steps_per_second"]) for _, r in here])
            spread = np.array([[float(r["slowest"]), float(r["fastest"])] for _, r in here]).T
            error = np.abs(spread - middle)
            ax.bar([a for a, _ in here], middle, width, label=name, yerr=error, capsize=2)
        labels = [name.replace("-", "\n", 1) for name in configurations]
        ax.set_xticks(range(len(configurations)), labels, fontsize=8)
        ax.set_yscale("log")
        ax.set_ylabel("environment steps / s")
        ax.set_title(f"jax {jax}, {mine[0]['cores']} cores" if device == "cpu" else device)
        ax.grid(axis="y", alpha=0.3)
        ax.legend(fontsize=8, ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, -0.32))
    figure.savefig(folder / "throughput.png", dpi=110)
