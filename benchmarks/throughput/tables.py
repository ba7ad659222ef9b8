"""Tables and a figure of the results of the race."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import commit
from benchmarks.table import Row, read
from benchmarks.throughput.race import NAMES
from benchmarks.throughput.ratios import Ratio, shown
from benchmarks.throughput.results import RACE, RATES
from ppo_jax.analysis import style

OURS, OTHER = NAMES["ours"], NAMES["purejaxrl"]
# Heading of the column with the compile times of ppo_jax and of one peer.
COMPILED = f"compile s, {OURS} / {OTHER}"


def of(folder: Path, device: str = "cpu") -> list[Row]:
    """The rows of one kind of device.

    Raises:
        SystemExit: the rows were measured with several commits.
    """
    rows = [r for r in read(folder / RACE) if r["device"] == device]
    commit.one(rows, str(folder / RACE))
    return rows


class Cells:
    """The rows of one version of jax, by race and implementation."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Store the rows.

        Args:
            rows: rows of one version of jax.
        """
        rows = [*rows]
        self.jax, self.commit = rows[0]["jax"], rows[0].get("commit") or "not recorded"
        self.interval = next((r["interval"] for r in rows if r["interval"]), "")
        self.names = [n for n in NAMES.values() if any(r["implementation"] == n for r in rows)]
        self.races = [*dict.fromkeys((r["configuration"], r["devices"]) for r in rows)]
        self.found = {(r["configuration"], r["devices"], r["implementation"]): r for r in rows}

    def row(self, race: tuple[str, str], name: str) -> Row | None:
        """The row of a contestant in a race; None if it was not measured."""
        return self.found.get((*race, name))

    def label(self, race: tuple[str, str]) -> str:
        """The label of a race, such as "cartpole-4x128-a16, 2 devices"; "1 device" is left out."""
        rows = (self.row(race, name) for name in self.names)
        counts = [int(r["device_count"]) for r in rows if r and r["device_count"]]
        more = race[1] != "one" and counts
        return f"{race[0]}, {max(counts)} devices" if more else race[0]

    def compiled(self, race: tuple[str, str]) -> str:
        """Compile times of ppo_jax and PureJaxRL in seconds."""
        both = [self.row(race, name) for name in (OURS, OTHER)]
        return " / ".join(f"{float(r['compile_seconds']):.1f}" if ran(r) else "-" for r in both)

    def options(self, name: str) -> str:
        """The compiler options of a contestant, over all races."""
        rows = [r for race in self.races if (r := self.row(race, name)) is not None and ran(r)]
        words = dict.fromkeys(word for r in rows for word in r["options"].split())
        return "<br>".join(w.replace(",", " ") for w in words) or ("none" if rows else "-")


def by_jax(rows: list[Row]) -> list[Cells]:
    """The rows of each version of jax."""
    return [
        Cells(r for r in rows if r["jax"] == jax) for jax in dict.fromkeys(r["jax"] for r in rows)
    ]


def ran(row: Row | None) -> bool:
    """Whether a contestant was measured."""
    return row is not None and not row["why"]


def ratio_of(row: Row, speedup: str) -> Ratio | None:
    """The rate of ppo_jax divided by the one of this row; None if they were not compared."""
    if not row[speedup]:
        return None
    low, high = row[f"{speedup}_low"], row[f"{speedup}_high"]
    return Ratio(float(row[speedup]), float(low) if low else None, float(high) if high else None)


def compared(row: Row, ours: Row | None, per: str = "seconds") -> str:
    """The text of the ratio of a row; "" without a ratio."""
    rate, speedup = RATES[per]
    ratio = ratio_of(row, speedup)
    if ours is None or ratio is None or row["implementation"] == OURS:
        return ""
    return shown(ratio, float(ours[rate]), float(row[rate]))


def markdown(folder: Path, per: str = "seconds", device: str = "cpu") -> str:
    """Tables of rates, and of the rate of ppo_jax as a multiple of each, by version of jax.

    Args:
        folder: folder of the CSV.
        per: unit of time, "seconds" for wall-clock time or "cpu_seconds".
        device: kind of device.
    """
    wall = per == "seconds"
    tables = []
    for cells in by_jax(of(folder, device)):
        head = f"jax {cells.jax}, commit {cells.commit}" + ("" if wall else ", per CPU second")
        head += f"; [{cells.interval}]" if cells.interval else ""
        more = [COMPILED] if wall else []
        lines = [
            _line([head, *cells.names, *more]),
            "|---" * (1 + len(cells.names) + len(more)) + "|",
        ]
        for race in cells.races:
            ours = cells.row(race, OURS)
            found = [_cell(cells.row(race, name), ours, per) for name in cells.names]
            lines.append(
                _line([cells.label(race), *found, *([cells.compiled(race)] if wall else [])])
            )
        if wall:
            told = [cells.options(name) for name in cells.names]
            lines.append(_line(["compiler's options", *told, ""]))
        if any(race_has(cells, race, RATES[per][0]) for race in cells.races):
            tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def race_has(cells: Cells, race: tuple[str, str], column: str) -> bool:
    """Whether any contestant has a value in a column."""
    rows = (cells.row(race, name) for name in cells.names)
    return any(r is not None and r[column] for r in rows)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(row: Row | None, ours: Row | None, per: str) -> str:
    if row is None:
        return ""
    if row["why"]:
        return row["why"] if "no answer" in row["why"] else "-"
    rate = row[RATES[per][0]]
    if not rate:
        return ""
    ratio = compared(row, ours if ran(ours) else None, per)
    text = f"{float(rate) / 1000:,.3g} k"
    return f"{text}, {ratio}" if ratio else text


def summary(folder: Path, device: str = "cpu") -> str:
    """The table of the README, for the oldest version of jax: the speed-ups of ppo_jax.

    A configuration has one row: that of one device for one agent, and that of all devices for many
    agents, as the commands run them. The documentation has both.
    """
    tables = by_jax(of(folder, device))
    if not tables:
        return ""
    cells = tables[0]
    names = [name for name in cells.names if name != OURS]
    lines = [
        _line(["", "ppo_jax, steps/s", *names, COMPILED]),
        "|---" * (3 + len(names)) + "|",
    ]
    for race in cells.races:
        ours = cells.row(race, OURS)
        if ours is None or not ran(ours) or race[1] != _usual_devices(cells, race[0], ours):
            continue
        found = []
        for name in names:
            row = cells.row(race, name)
            found.append(compared(row, ours) if row and ran(row) else _cell(row, ours, "seconds"))
        own = f"{int(ours['steps_per_second']):,}"
        lines.append(_line([cells.label(race), own, *found, cells.compiled(race)]))
    return "\n".join(lines) + "\n"


def _usual_devices(cells: Cells, configuration: str, ours: Row) -> str:
    """The devices that the commands use for a configuration: "one" or "all"."""
    several = int(ours["agents"]) > 1 and (configuration, "all") in cells.races
    return "all" if several else "one"


def compile_markdown(folder: Path, device: str = "cpu") -> str:
    """A table of compile times, compared with PureJaxRL, and of times to the first update."""
    lines = [
        f"| jax | configuration | implementation | compile s | {OTHER}'s | first update s | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for cells in by_jax(of(folder, device)):
        for race in cells.races:
            other = cells.row(race, OTHER)
            beside = other["compile_seconds"] if other and ran(other) else ""
            for name in cells.names:
                r = cells.row(race, name)
                if r is None or r["why"]:
                    continue
                found = [cells.jax, cells.label(race), name, r["compile_seconds"], beside]
                lines.append(_line([*found, r["first_update_seconds"], r["peak_mb"]]))
    return "\n".join(lines) + "\n"


@style.styled
def plot(folder: Path, device: str = "cpu") -> None:
    """Plot steps per second on a logarithmic axis: a row per race and a point per library."""
    tables = by_jax([r for r in of(folder, device) if not r["why"]])
    heights = [len(cells.races) for cells in tables]
    size = (10, 0.42 * sum(heights) + 1.2 * len(tables) + 0.5)
    figure, panels = style.figure(len(tables), size=size, heights=heights)
    ranks = {name: k for k, name in enumerate(dict.fromkeys(n for t in tables for n in t.names))}
    for ax, cells in zip(panels, tables, strict=True):
        for place, race in enumerate(cells.races):
            here = [(n, r) for n in cells.names if (r := cells.row(race, n)) is not None]
            for k, (name, row) in enumerate(here):
                _point(ax, place + 0.12 * (k - (len(here) - 1) / 2), row, name, ranks[name])
        labels = [re.sub(r"-a(\d+)", r", \1 agents", cells.label(race)) for race in cells.races]
        ax.set_yticks(range(len(labels)), labels)
        ax.set_ylim(len(labels) - 0.5, -0.5)
        style.log_axis(ax, "x")
        cores = next(iter(cells.found.values()))["cores"]
        title = f"jax {cells.jax}, {cores} cores" if device == "cpu" else device
        style.label(ax, title=title, x="environment steps per second")
    style.legend(figure)
    style.write(figure, folder / "throughput.png")


def _point(ax: Any, y: float, row: Row, name: str, rank: int) -> None:
    """The median rate of a row of the table, and the range of its rounds as a line."""
    rate, slowest, fastest = (float(row[n]) for n in ("steps_per_second", "slowest", "fastest"))
    error = [[max(rate - slowest, 0.0)], [max(fastest - rate, 0.0)]]
    marker = "oDs^vPX*"[rank % 8]
    ax.errorbar(rate, y, xerr=error, fmt=marker, color=style.colour(rank), label=name, elinewidth=1)
