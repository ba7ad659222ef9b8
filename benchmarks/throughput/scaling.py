"""Speed of ppo_jax with different numbers of environments, steps per rollout and agents."""

import dataclasses
from pathlib import Path

from benchmarks.table import Row
from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.race import Contestant, Settings

BASE = Configuration("scaling", 64, 128)
SMALL = Configuration("scaling", 4, 128)
FIELDS = (
    "jax", "device", "varied", "value", "steps_per_second", "microseconds_per_step",
    "compile_seconds",
)  # fmt: skip
KEY = ("jax", "device", "varied", "value")
VARIED: dict[str, tuple[Configuration, tuple[int, ...]]] = {
    "num_envs": (BASE, (4, 16, 64, 256, 1024, 4096)),
    "num_steps": (BASE, (8, 32, 128, 512, 2048)),
    "agents": (SMALL, (1, 2, 4, 8, 16, 64)),
}


def scaling(settings: Settings, jax: str) -> list[Row]:
    """Measure all sizes one after the other, each in a separate process."""
    rows = []
    for name, (base, values) in VARIED.items():
        for value in values:
            contestant = Contestant("ours", dataclasses.replace(base, **{name: value}), settings)
            for _ in range(3):
                contestant.round()
            contestant.end()
            if contestant.why:
                raise SystemExit(f"{name} = {value}: {contestant.why}")
            rate = sorted(r["env_steps"] / r["seconds"] for r in contestant.rounds)[1]
            rows.append(
                {
                    "jax": jax,
                    "device": contestant.ready["device"],
                    "varied": name,
                    "value": value,
                    "steps_per_second": round(rate),
                    "microseconds_per_step": round(1e6 / rate, 3),
                    "compile_seconds": contestant.ready["compile_seconds"],
                }
            )
            print(name, value, f"{rate:,.0f} steps/s", flush=True)
    return rows


def plot(rows: list[Row], jax: str, path: Path) -> None:
    """Microseconds per environment step against each size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    for place, name in enumerate(VARIED):
        mine = [r for r in rows if r["varied"] == name and r["jax"] == jax]
        mine = sorted(mine, key=lambda r: int(r["value"]))
        ax = figure.add_subplot(1, len(VARIED), place + 1)
        x = [int(r["value"]) for r in mine]
        ax.plot(x, [float(r["microseconds_per_step"]) for r in mine], marker="o")
        ax.set_xscale("log", base=2)
        ax.set_xlabel(name)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        ax.set_ylabel("µs per environment step")
    figure.savefig(path, dpi=110)
