"""What the presets reach, over many seeds, against published marks.

python -m benchmarks.learning                      every short task, 64 seeds, swept
python -m benchmarks.learning --tasks breakout     a long one, in resumable runs
python -m benchmarks.learning --list

Each seed is trained on its own and then evaluated greedily over 128 episodes. The table goes to
benchmarks/results/learning.csv, the seeds behind it to learning_seeds.csv, the figure to
learning.png; rows of tasks that were not run now stay as they are.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.table import RESULTS, merge, read
from ppo_jax import config as configs
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.config.options import did_you_mean
from ppo_jax.experiment import RunOptions, train
from ppo_jax.runs import provenance
from ppo_jax.sweep import run_sweep

RUNS = Path("runs/learning")
EPISODES = 128
# Seeds of the tables; the presets were chosen on seeds 1000 and up.
FIRST_SEED = 0
# The table of the README: tasks in which every project reaches the maximum are left out, and an
# interval needs so many seeds.
SOLVED = ("CartPole-v1", "CartPoleContinuous-v1")
FEWEST_SEEDS = 5


@dataclasses.dataclass(frozen=True)
class Task:
    """One line of the table.

    Attributes:
        preset: whose values are used.
        steps: environment steps; the annealing horizon is this too.
        mark: what a seed should reach.
        goal: the claim that is checked, as share of seeds, mean or median at the mark.
        published: what others report, and where.
        seeds: how many, if not asked otherwise.
        long: minutes per seed: a run directory each, resumable.
    """

    preset: str
    steps: int
    mark: float
    goal: str
    published: str
    seeds: int = 64
    long: bool = False


TASKS = {
    "cartpole_100k": Task("cartpole", 100_000, 475, "95 %", "500 at 100 k, 1 run (rl-zoo)"),
    "cartpole": Task(
        "cartpole", 500_000, 500, "95 %", "490.0 at 500 k (CleanRL); 497.5 (baselines)"
    ),
    "cartpole_continuous": Task("cartpole_continuous", 200_000, 500, "95 %", "none"),
    "acrobot": Task("acrobot", 500_000, -80, "mean", "-86.4 at 500 k (CleanRL); -81.8 (baselines)"),
    "pendulum": Task("pendulum", 500_000, -170, "mean", "-172.2 at 100 k with gSDE (rl-zoo)"),
    "mountain_car": Task(
        "mountain_car", 1_000_000, -112, "median", "-110.4 at 1 M, 1 run (rl-zoo)"
    ),
    "mountain_car_continuous": Task(
        "mountain_car_continuous", 300_000, 90, "mean", "88.3 with gSDE (rl-zoo); 0 (gymnax-blines)"
    ),
    "minatar_breakout_1m": Task(
        "breakout", 1_000_000, 5, "mean", "0.5 at random", seeds=1, long=True
    ),
    "minatar_asterix_1m": Task(
        "asterix", 1_000_000, 2, "mean", "0.5 at random", seeds=1, long=True
    ),
    "minatar_freeway_1m": Task(
        "freeway", 1_000_000, 10, "mean", "0.4 at random", seeds=1, long=True
    ),
    "minatar_seaquest_1m": Task(
        "seaquest", 1_000_000, 1, "mean", "0.1 at random", seeds=1, long=True
    ),
    "minatar_space_invaders_1m": Task(
        "spaceinvaders", 1_000_000, 30, "mean", "4.4 at random", seeds=1, long=True
    ),
    "breakout": Task(
        "breakout", 10_000_000, 40, "mean", "42-44 (PureJaxRL); 28 (gymnax-blines)", 3, True
    ),
    "asterix": Task("asterix", 10_000_000, 15, "mean", "15 (gymnax-blines)", 2, True),
    "freeway": Task("freeway", 10_000_000, 58, "mean", "58 (gymnax-blines)", 1, True),
    "space_invaders": Task(
        "spaceinvaders", 10_000_000, 131, "mean", "131 (gymnax-blines)", 2, True
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure what the presets learn.

    Attributes:
        tasks: names, or every short one.
        seeds: per task; None: the task's own number.
        list: only print the tasks.
        table: only print the committed results, as the README has them.
    """

    tasks: tuple[str, ...] = tuple(n for n, t in TASKS.items() if not t.long)
    seeds: int | None = None
    list: bool = False
    table: bool = False


def swept_returns(task: Task, seeds: int) -> np.ndarray:
    """[seeds] greedy returns."""
    config = configs.make(preset=task.preset, total_timesteps=task.steps, seed=FIRST_SEED)
    _, metrics = run_sweep(config, [{}], seeds, episodes=EPISODES)
    return metrics["eval_return"][0].mean(axis=-1)


def resumable_returns(name: str, task: Task, seeds: int) -> tuple[np.ndarray, float]:
    """([seeds] greedy returns, seconds of training), each seed from a run directory that is
    continued if it is there."""
    summaries = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        path = RUNS / name / f"seed{seed}"
        config = configs.make(preset=task.preset, total_timesteps=task.steps, seed=seed)
        if (
            not (path / "summary.json").exists()
            or "finished" not in (path / "summary.json").read_text()
        ):
            where: dict[str, Any] = (
                {"resume": path} if (path / "config.json").exists() else {"run_dir": path}
            )
            if train(config, RunOptions(**where, eval_episodes=EPISODES)).exit_code:
                raise SystemExit("stopped; the same command goes on from here")
        summaries.append(json.loads((path / "summary.json").read_text()))
    returns = np.array([s["eval_return_mean"] for s in summaries])
    return returns, sum(s["compile_seconds"] + s["train_seconds"] for s in summaries)


def interval(returns: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean over seeds, those that failed included; NaN for one."""
    if len(returns) < 2:
        return np.nan, np.nan
    half = stats.t.ppf(0.975, len(returns) - 1) * returns.std(ddof=1) / np.sqrt(len(returns))
    return float(returns.mean() - half), float(returns.mean() + half)


def row_of(name: str, task: Task, returns: np.ndarray, seconds: float) -> dict[str, Any]:
    """Statistics over seeds; the interval of the mean is Student's t."""
    mean, n = returns.mean(), len(returns)
    low, high = interval(returns)
    share = (returns >= task.mark).mean()
    met = {
        "95 %": share >= 0.95,
        "mean": mean >= task.mark,
        "median": np.median(returns) >= task.mark,
    }
    return {
        "task": name,
        "env": configs.make(preset=task.preset).env,
        "env_steps": task.steps,
        "seeds": n,
        "mean": round(float(mean), 2),
        "ci95_low": round(low, 2),
        "ci95_high": round(high, 2),
        "median": round(float(np.median(returns)), 2),
        "iqm": round(float(stats.trim_mean(returns, 0.25)), 2),
        "min": round(float(returns.min()), 2),
        "max": round(float(returns.max()), 2),
        "mark": task.mark,
        "share_at_mark": round(share, 4),
        "goal": task.goal,
        "met": bool(met[task.goal]),
        "published": task.published,
        "seconds": round(seconds, 1),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def plot(rows: list[dict[str, Any]], seeds: list[dict[str, Any]], path: Path) -> None:
    """Every seed as a dot, the mean with its interval, and the mark; tasks of several seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if int(r["seeds"]) > 2]
    columns = 4
    lines = -(-len(rows) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(10, 1.5 * lines), squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.axis("off")
    spread = np.random.default_rng(0)
    for axes, row in zip(grid.flat, rows, strict=False):
        returns = np.array([float(s["return"]) for s in seeds if s["task"] == row["task"]])
        height = spread.uniform(-0.3, 0.3, len(returns))
        axes.plot(returns, height, ".", color="tab:blue", alpha=0.5, markeredgewidth=0)
        bounds = [float(row["ci95_low"]), float(row["ci95_high"])]
        axes.plot(bounds, [0, 0], color="black", linewidth=2)
        axes.plot(float(row["mean"]), 0, "D", color="black", markersize=4)
        axes.axvline(float(row["mark"]), color="tab:red", linestyle="--", linewidth=1)
        axes.set(ylim=(-0.6, 0.6), yticks=[])
        axes.set_title(f"{row['task']} ({row['seeds']} seeds)", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=5)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README: the rows that discriminate between projects, with intervals where
    there are at least FEWEST_SEEDS seeds."""
    head = ("environment", "steps", "seeds", "mean return [95 %]", "others report")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        if r["env"] in SOLVED or "at random" in r["published"]:
            continue
        enough = int(r["seeds"]) >= FEWEST_SEEDS
        interval = f" [{r['ci95_low']}, {r['ci95_high']}]" if enough else ""
        cells = (r["env"], f"{int(r['env_steps']):,}", r["seeds"], f"{r['mean']}{interval}")
        lines.append("| " + " | ".join((*cells, r["published"])) + " |")
    return "\n".join(lines) + "\n"


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table people paste."""
    table = Table("task", "steps", "seeds", "mean [95 %]", "median", "mark", "share", "published")
    for r in rows:
        table.add_row(
            r["task"],
            f"{int(r['env_steps']):,}",
            str(r["seeds"]),
            f"{r['mean']} [{r['ci95_low']}, {r['ci95_high']}]",
            str(r["median"]),
            f"{r['mark']} ({r['goal']})",
            str(r["share_at_mark"]),
            r["published"],
        )
    Console(width=150).print(table)


def main(options: Options) -> None:
    """Run the tasks, merge the tables, print."""
    if options.list:
        for name, task in TASKS.items():
            print(f"{name:28} {task.steps:>12,} steps, {task.seeds} seeds")
        return
    if options.table:
        print(markdown(read(RESULTS / "learning.csv")), end="")
        return
    unknown = set(options.tasks) - set(TASKS)
    if unknown:
        raise SystemExit(f"unknown task {min(unknown)!r}; {did_you_mean(min(unknown), TASKS)}")
    if not any(TASKS[name].long for name in options.tasks):
        one_device_per_core()
    for name in options.tasks:
        task = TASKS[name]
        seeds = options.seeds or task.seeds
        started = time.perf_counter()
        if task.long:
            returns, seconds = resumable_returns(name, task, seeds)
        else:
            returns = swept_returns(task, seeds)
            seconds = time.perf_counter() - started
        row = row_of(name, task, returns, seconds)
        per_seed = [
            {"task": name, "seed": FIRST_SEED + i, "return": round(float(r), 3)}
            for i, r in enumerate(returns)
        ]
        all_seeds = merge(RESULTS / "learning_seeds.csv", per_seed, {"task": [*TASKS]})
        merged = merge(RESULTS / "learning.csv", [row], {"task": [*TASKS]})
        plot(merged, all_seeds, RESULTS / "learning.png")
        print_rows([row])
    print_rows(merged)


if __name__ == "__main__":
    main(tyro.cli(Options))
