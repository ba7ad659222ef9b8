"""Speed of ppo_jax with different numbers of environments, steps per rollout and agents."""

import dataclasses
from pathlib import Path

from benchmarks.table import Row
from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.race import Contestant, Settings
from ppo_jax.analysis import style

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
NAMES = {"num_envs": "environments", "num_steps": "steps per rollout", "agents": "agents"}


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


@style.styled
def plot(rows: list[Row], jax: str, path: Path) -> None:
    """Plot microseconds per environment step over each size."""
    figure, panels = style.figure(1, len(VARIED), size=(10, 3.6))
    for ax, name in zip(panels, VARIED, strict=True):
        mine = [r for r in rows if r["varied"] == name and r["jax"] == jax]
        mine = sorted(mine, key=lambda r: int(r["value"]))
        x = [int(r["value"]) for r in mine]
        times = [float(r["microseconds_per_step"]) for r in mine]
        ax.plot(x, times, marker="o")
        style.scale_axis(ax, x)
        ax.set_ylim(0, 1.08 * max(times))
        y = "time per environment step (µs)" if ax is panels[0] else ""
        style.label(ax, x=NAMES[name], y=y)
    style.write(figure, path)
