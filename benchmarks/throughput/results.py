"""Results as CSV: medians and ratios with their intervals, and every round."""

import dataclasses
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import Row, replace
from benchmarks.throughput.configurations import CONFIGURATIONS
from benchmarks.throughput.race import NAMES, Contestant
from benchmarks.throughput.ratios import INTERVAL, TOO_FEW, paired

KEY = ("jax", "device", "configuration", "devices", "implementation")
FIELDS = (
    *KEY, "device_count", "env", "num_envs", "num_steps", "agents",
    "steps_per_second", "slowest", "fastest", "rounds", "speedup", "speedup_low", "speedup_high",
    "steps_per_cpu_second", "cpu_speedup", "cpu_speedup_low", "cpu_speedup_high", "interval",
    "seconds_per_million", "cpu_seconds_per_million",
    "import_seconds", "compile_seconds", "first_update_seconds", "peak_mb", "options", "why",
    "versions", "python", "cores", "processor", "load", "commit",
)  # fmt: skip
ROUND_FIELDS = (*KEY, "round", "env_steps", "seconds", "cpu_seconds", "commit")
RACE, ROUNDS = "throughput.csv", "throughput_rounds.csv"
# Unit of time of a rate -> (column of the rate, column of ppo_jax's rate as a multiple of it).
RATES = {
    "seconds": ("steps_per_second", "speedup"),
    "cpu_seconds": ("steps_per_cpu_second", "cpu_speedup"),
}


@dataclasses.dataclass(frozen=True)
class Where:
    """The values that all rows of a run share.

    Attributes:
        jax: version of jax.
        commit: commit of the code.
        devices: "one" or "all", the number of devices of each contestant.
        load: load average of the machine before the run, a number of processes.
    """

    jax: str
    commit: str = ""
    devices: str = "one"
    load: float | None = None


def rows_of(field: Sequence[Contestant], where: Where) -> list[Row]:
    """A row for each contestant; ratios are the rate of ppo_jax divided by its rate."""
    ours = next((c for c in field if c.name == "ours" and not c.why), None)
    return [_row(c, ours, _keys(field, where) | _of_machine(where)) for c in field]


def rounds_of(field: Sequence[Contestant], where: Where) -> list[Row]:
    """A row for each round of each contestant, from which `rows_of` could be computed again."""
    rows = []
    for c in (c for c in field if not c.why):
        keys = _keys(field, where) | {"implementation": NAMES[c.name], "commit": where.commit}
        for k, answer in enumerate(c.rounds):
            row = {name: answer.get(name, "") for name in ROUND_FIELDS} | keys | {"round": k}
            row |= {name: round(answer[name], 6) for name in RATES}
            rows.append(row)
    return rows


def _keys(field: Sequence[Contestant], where: Where) -> Row:
    return {
        "jax": where.jax,
        "device": next((c.ready["device"] for c in field if not c.why), "cpu"),
        "configuration": field[0].configuration.name,
        "devices": where.devices,
    }


def _of_machine(where: Where) -> Row:
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "load": "" if where.load is None else round(where.load, 2),
        "commit": where.commit,
    }


def _row(c: Contestant, ours: Contestant | None, common: Row) -> Row:
    row: Row = dict.fromkeys(FIELDS, "") | common
    row |= {
        "implementation": NAMES[c.name],
        **{n: getattr(c.configuration, n) for n in ("env", "num_envs", "num_steps", "agents")},
        "why": c.why,
    }
    if c.why:
        return row
    for per, (rate, speedup) in RATES.items():
        mine = _rates(c, per)
        row[rate] = round(float(np.median(mine)))
        row[f"{per}_per_million"] = round(1e6 / float(np.median(mine)), 3)
        # Contestants with different numbers of devices are not compared.
        if ours is not None and ours.ready["devices"] == c.ready["devices"]:
            ratio = paired(_rates(ours, per), mine)
            row["interval"] = TOO_FEW if ratio.low is None else INTERVAL
            names = (speedup, f"{speedup}_low", f"{speedup}_high")
            row |= {n: "" if x is None else round(x, 3) for n, x in zip(names, ratio, strict=True)}
    wall = _rates(c, "seconds")
    versions = {k: v for k, v in c.ready["versions"].items() if k != "jax"}
    return row | {
        "device_count": c.ready["devices"],
        "slowest": round(min(wall)),
        "fastest": round(max(wall)),
        "rounds": len(wall),
        **{n: c.ready[n] for n in ("import_seconds", "compile_seconds", "first_update_seconds")},
        "peak_mb": round(max(r["peak_bytes"] for r in c.rounds) / 2**20),
        "options": c.ready["options"],
        "versions": " ".join(f"{k}={v}".replace(" ", ":") for k, v in versions.items()),
    }


def _rates(c: Contestant, per: str) -> list[float]:
    return [r["env_steps"] / r[per] for r in c.rounds]


def processor() -> str:
    """The name of the CPU, as reported by the system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def keep_race(
    folder: Path, field: Sequence[Contestant], where: Where, fresh: bool = False
) -> list[Row]:
    """Write the rows of a race, and drop the rows of an earlier race on the same configuration.

    Args:
        folder: folder of the CSV files.
        field: contestants after their rounds.
        where: values that all rows share.
        fresh: whether rows of other commits are dropped.

    Returns:
        All rows of the table; [] if no contestant could be measured, which writes nothing.
    """
    known = of_commit(where.commit) if fresh else lambda row: True
    rows, rounds = rows_of(field, where), rounds_of(field, where)
    if all(r["why"] for r in rows):
        return []
    if rounds:
        replace(folder / ROUNDS, rounds, KEY[:-1], lambda r: (*place(r), int(r["round"])), known)
    return replace(folder / RACE, rows, KEY[:-1], place, known)


def of_commit(commit: str) -> Callable[[Row], bool]:
    """A function that returns whether a row was measured with the given commit."""
    return lambda row: (row.get("commit") or "") == commit


def place(row: Row) -> tuple[Any, ...]:
    """Sort key of a row: version of jax, device, configuration, devices and contestant."""
    known, names = list(CONFIGURATIONS), list(NAMES.values())
    configuration, name = row.get("configuration", ""), row.get("implementation", "")
    return (
        [int(x) for x in str(row.get("jax", "0")).split(".") if x.isdigit()],
        str(row.get("device", "")),
        known.index(configuration) if configuration in known else len(known),
        configuration,
        row.get("devices", "") != "one",
        names.index(name) if name in names else len(names),
    )
