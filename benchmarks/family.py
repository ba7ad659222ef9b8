"""Returns and learning curves of the algorithms on four environments.

python -m benchmarks.family                          all algorithms and environments, 32 seeds each
python -m benchmarks.family --methods trpo ppo --envs CartPole-v1
python -m benchmarks.family --table                  print the committed results

Each method uses its preset for the environment. Seeds are vmapped and distributed over the cores.
Greedy returns after training are written to benchmarks/results/family.csv, those of each seed to
family_seeds.csv, the learning curves to family_curves.csv and family.png.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.names import check_names
from benchmarks.table import RESULTS, merge, read
from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.analysis import style
from ppo_jax.analysis.statistics import interquartile_mean, interval
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.runs import provenance
from ppo_jax.sweep import run_sweep
from ppo_jax.sweep.results import binned, filled

SEEDS = 32
EPISODES = 128
BINS = 50
STEPS = {
    "CartPole-v1": 500_000,
    "CartPoleContinuous-v1": 300_000,
    "Acrobot-v1": 300_000,
    "Pendulum-v1": 300_000,
}
ENVS = tuple(STEPS)
THRESHOLDS = {
    "CartPole-v1": 475,
    "CartPoleContinuous-v1": 475,
    "Acrobot-v1": -100,
    "Pendulum-v1": -200,
}
# REPPO is for continuous actions, and is compared with PPO by benchmarks/reppo.py.
ELSEWHERE = ("reppo",)
# All other algorithms, and REINFORCE also with a learned baseline, which changes these options as
# well.
METHODS = tuple(
    m
    for a in ALGORITHMS
    if a not in ELSEWHERE
    for m in ((a, f"{a} + value") if a == "reinforce" else (a,))
)
WITH_BASELINE: dict[str, dict[str, Any]] = {
    "CartPole-v1": {},
    "CartPoleContinuous-v1": {},
    "Acrobot-v1": {},
    "Pendulum-v1": {"learning_rate": 3e-2, "gamma": 0.98, "normalize_reward": True},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the returns of all algorithms.

    Attributes:
        methods: names of the methods to measure; all by default.
        envs: names of the environments; all by default.
        seeds: number of seeds; with fewer than 32 no file is written.
        steps: environment steps of each run; by default those of the published table, and with
            another number no file is written.
        table: only print the committed results, as in the documentation.
    """

    methods: tuple[str, ...] = METHODS
    envs: tuple[str, ...] = ENVS
    seeds: int = SEEDS
    steps: int | None = None
    table: bool = False


def config_of(method: str, env: str, steps: int) -> configs.TrainConfig:
    """The configuration of a method for an environment."""
    algorithm = method.removesuffix(" + value")
    changes = {"baseline": "value", **WITH_BASELINE[env]} if algorithm != method else {}
    return configs.make(env=env, algorithm=algorithm, total_timesteps=steps, **changes)


def measure(config: configs.TrainConfig, seeds: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Train all seeds; returns (greedy returns [S], metrics [S, U])."""
    _, metrics = run_sweep(config, [{}], seeds, episodes=EPISODES)
    metrics = {name: x[0] for name, x in metrics.items()}
    return metrics.pop("eval_return").mean(axis=-1), metrics


def row_of(method: str, env: str, steps: int, returns: np.ndarray, seconds: float) -> dict:
    """A row of the table."""
    low, high = interval([returns])
    return {
        "env": env,
        "method": method,
        "env_steps": steps,
        "seeds": len(returns),
        "mean": round(float(returns.mean()), 1),
        "iqm": round(float(interquartile_mean(returns)), 1),
        "ci95_low": round(float(low), 1),
        "ci95_high": round(float(high), 1),
        "min": round(float(returns.min()), 1),
        "threshold": THRESHOLDS[env],
        "fraction_at_threshold": round(float((returns >= THRESHOLDS[env]).mean()), 4),
        "seconds": round(seconds, 1),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def curve_rows(method: str, env: str, steps: int, curve: np.ndarray) -> list[dict]:
    """A learning curve as rows with steps, interquartile mean and confidence interval."""
    low, high = interval([curve])
    middle = interquartile_mean(curve)
    return [
        {
            "env": env,
            "method": method,
            "env_step": round(steps * (i + 1) / BINS),
            "iqm": round(float(middle[i]), 2),
            "ci95_low": round(float(low[i]), 2),
            "ci95_high": round(float(high[i]), 2),
        }
        for i in range(BINS)
    ]


@style.styled
def plot(path: Path = RESULTS / "family.png") -> None:
    """Plot the learning curves in the file, with a panel per environment and a line per method."""
    rows = read(RESULTS / "family_curves.csv")
    figure, grid = style.figure(2, 2, size=(10, 7.4))
    for axes, env in zip(grid, ENVS, strict=True):
        for i, method in enumerate(reversed(METHODS)):  # PPO is the first line of the legend
            mine = [r for r in rows if r["env"] == env and r["method"] == method]
            x, y, low, high = (
                np.array([float(r[c]) for r in mine])
                for c in ("env_step", "iqm", "ci95_low", "ci95_high")
            )
            style.line(axes, x, y, rank=i, name=method, band=(low, high))
        style.label(axes, title=env, x="environment steps", y="episode return, IQM")
        axes.xaxis.set_major_formatter(style.short)
    style.legend(figure)
    style.write(figure, path)


def markdown() -> str:
    """The table of the documentation: a row per method, a column per environment."""
    rows = {(r["method"], r["env"]): r for r in read(RESULTS / "family.csv")}
    lines = ["| | " + " | ".join(ENVS) + " |", "|---|" + "---|" * len(ENVS)]
    for method in METHODS:
        cells = [rows.get((method, env)) for env in ENVS]
        text = [_cell(c) if c else "" for c in cells]
        lines.append(f"| `{method}` | " + " | ".join(text) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, str]) -> str:
    interval = f"[{row['ci95_low']}, {row['ci95_high']}]"
    return f"{row['iqm']} {interval} ({float(row['fraction_at_threshold']):.0%})"


def print_table() -> None:
    """Print the table in the file to the terminal."""
    head = ("env", "method", "seeds", "mean", "IQM [95 %]", "min", "at threshold", "seconds")
    table = Table(*head)
    for r in read(RESULTS / "family.csv"):
        spread = f"{r['iqm']} [{r['ci95_low']}, {r['ci95_high']}]"
        share = f"{float(r['fraction_at_threshold']):.0%} ≥ {r['threshold']}"
        cells = (r["env"], r["method"], r["seeds"], r["mean"], spread, r["min"], share)
        table.add_row(*cells, r["seconds"])
    Console(width=130).print(table)


def main(options: Options) -> None:
    """Measure, merge the new rows into the files, plot and print."""
    if options.table:
        print(markdown(), end="")
        return
    check_names("methods", options.methods, METHODS)
    check_names("envs", options.envs, ENVS)
    one_device_per_core()
    order = {"env": [*ENVS], "method": [*METHODS]}
    for env in options.envs:
        for method in options.methods:
            started = time.perf_counter()
            config = config_of(method, env, options.steps or STEPS[env])
            returns, metrics = measure(config, options.seeds)
            row = row_of(
                method, env, config.total_timesteps, returns, time.perf_counter() - started
            )
            per_seed = [
                {"env": env, "method": method, "seed": i, "return": round(float(r), 3)}
                for i, r in enumerate(returns)
            ]
            print(
                {
                    k: row[k]
                    for k in ("env", "method", "mean", "iqm", "min", "fraction_at_threshold")
                }
            )
            if config.total_timesteps != STEPS[env] or options.seeds < SEEDS:
                continue
            steps = config.num_updates * config.num_envs * config.num_steps
            means = filled(binned(metrics, BINS)["episode_return"])
            curve = curve_rows(method, env, steps, means)
            merge(RESULTS / "family.csv", [row], order)
            merge(RESULTS / "family_seeds.csv", per_seed, order)
            merge(RESULTS / "family_curves.csv", curve, order)
    plot()
    print_table()


if __name__ == "__main__":
    main(tyro.cli(Options))
