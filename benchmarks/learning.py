"""Returns of the presets over many seeds, compared with published results.

python -m benchmarks.learning                      all short tasks, 64 seeds, as sweeps
python -m benchmarks.learning --tasks breakout     a long task, as resumable runs
python -m benchmarks.learning --list               list the tasks

Each seed is trained independently and then evaluated greedily over 128 episodes. The table is
written to benchmarks/results/learning.csv, the returns of each seed to learning_seeds.csv, and the
figure to learning.png; rows of other tasks are kept. The games of MinAtar are trained with 64 seeds
on an accelerator (`python -m benchmarks.accelerator`); the figure and the table of README.md take
them from accelerator.csv and accelerator_seeds.csv.
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

from benchmarks.names import check_names
from benchmarks.table import RESULTS, merge, read
from ppo_jax import config as configs
from ppo_jax.analysis import style
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.experiment import RunOptions, train
from ppo_jax.runs import provenance
from ppo_jax.sweep import run_sweep

RUNS = Path("runs/learning")
EPISODES = 128
# First seed of the tables; the presets were tuned with seeds from 1000 on.
FIRST_SEED = 0
# The table of the README: tasks in which every project reaches the maximum are left out, and an
# interval needs so many seeds.
SOLVED = ("CartPole-v1", "CartPoleContinuous-v1")
FEWEST_SEEDS = 5


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
        preset: name of the preset.
        steps: environment steps of each run, which is also the horizon of learning-rate decay.
        threshold: threshold of the return.
        goal: condition for success: the share of seeds, the mean or the median that must reach the
            threshold.
        published: published returns with their sources.
        seeds: default number of seeds.
        long: whether a seed takes minutes, so that each is a resumable run of its own.
    """

    preset: str
    steps: int
    threshold: float
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
    "seaquest": Task("seaquest", 10_000_000, 1, "mean", "0.1 at random", 1, True),
}
# Environment -> the largest of the published returns above and its source, for the figures.
BEST = {
    "Acrobot-v1": (-81.8, "baselines"),
    "Pendulum-v1": (-172.2, "rl-zoo"),
    "MountainCar-v0": (-110.4, "rl-zoo"),
    "MountainCarContinuous-v0": (88.3, "rl-zoo"),
    "Breakout-MinAtar": (44.0, "PureJaxRL"),
    "Asterix-MinAtar": (15.0, "gymnax-blines"),
    "Freeway-MinAtar": (58.0, "gymnax-blines"),
    "SpaceInvaders-MinAtar": (131.0, "gymnax-blines"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the returns of the presets.

    Attributes:
        tasks: names of the tasks to measure; all short tasks by default.
        seeds: number of seeds of each task; by default the number defined by the task.
        list: only list the tasks.
        table: only print the committed results, as in the README.
    """

    tasks: tuple[str, ...] = tuple(n for n, t in TASKS.items() if not t.long)
    seeds: int | None = None
    list: bool = False
    table: bool = False


def swept_returns(task: Task, seeds: int) -> np.ndarray:
    """[seeds] greedy returns of one sweep."""
    config = configs.make(preset=task.preset, total_timesteps=task.steps, seed=FIRST_SEED)
    _, metrics = run_sweep(config, [{}], seeds, episodes=EPISODES)
    return metrics["eval_return"][0].mean(axis=-1)


def resumable_returns(name: str, task: Task, seeds: int) -> tuple[np.ndarray, float]:
    """Train each seed in a run directory, or resume it if the directory exists.

    Returns:
        ([seeds] greedy returns, seconds of training)
    """
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
                raise SystemExit("stopped; run the same command again to continue")
        summaries.append(json.loads((path / "summary.json").read_text()))
    returns = np.array([s["eval_return_mean"] for s in summaries])
    return returns, sum(s["compile_seconds"] + s["train_seconds"] for s in summaries)


def interval(returns: np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of the mean over all seeds by Student's t; NaN for one seed."""
    if len(returns) < 2:
        return np.nan, np.nan
    half = stats.t.ppf(0.975, len(returns) - 1) * returns.std(ddof=1) / np.sqrt(len(returns))
    return float(returns.mean() - half), float(returns.mean() + half)


def row_of(name: str, task: Task, returns: np.ndarray, seconds: float) -> dict[str, Any]:
    """A row of the table, with statistics over seeds."""
    mean, n = returns.mean(), len(returns)
    low, high = interval(returns)
    share = (returns >= task.threshold).mean()
    met = {
        "95 %": share >= 0.95,
        "mean": mean >= task.threshold,
        "median": np.median(returns) >= task.threshold,
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
        "threshold": task.threshold,
        "fraction_at_threshold": round(share, 4),
        "goal": task.goal,
        "met": bool(met[task.goal]),
        "published": task.published,
        "seconds": round(seconds, 1),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def rows_of_all() -> list[dict[str, Any]]:
    """The committed rows, those of accelerator.csv included where fewer than FEWEST_SEEDS seeds
    were trained on a CPU."""
    rows = read(RESULTS / "learning.csv")
    rows = [r for r in rows if int(r["seeds"]) >= FEWEST_SEEDS]
    known = {r["task"] for r in rows}
    found: dict[str, dict[str, Any]] = {}
    for r in read(RESULTS / "accelerator.csv"):
        name = r["task"]
        if r["section"] == "learning" and r["value"] and name in TASKS and name not in known:
            found[name] = {
                **{n: r[n] for n in ("task", "env_steps", "seeds", "device")},
                "env": configs.make(preset=TASKS[name].preset).env,
                "mean": r["value"],
                "ci95_low": r["low"],
                "ci95_high": r["high"],
                "threshold": r["threshold"],
                "published": TASKS[name].published,
            }
    return [*rows, *(found[name] for name in TASKS if name in found)]


def seeds_of_all() -> list[dict[str, Any]]:
    """The committed returns of each seed, those of accelerators included."""
    return [*read(RESULTS / "learning_seeds.csv"), *read(RESULTS / "accelerator_seeds.csv")]


@style.styled
def plot(rows: list[dict[str, Any]], seeds: list[dict[str, Any]], path: Path) -> None:
    """Plot each seed as a dot, the mean with its interval, and the best published return.

    Args:
        rows: rows of tasks, each with at least FEWEST_SEEDS seeds; tasks that all projects solve
            are left out, because their seeds do not differ.
        seeds: rows with the return of each seed; without them, a task has its mean only.
        path: name of the figure.
    """
    rows = [row for row in rows if row["env"] not in SOLVED]
    columns = 4
    lines = -(-len(rows) // columns)
    figure, grid = style.figure(lines, columns, size=(12, 0.7 + 1.9 * lines))
    for axes in grid[len(rows) :]:
        axes.set_axis_off()
    spread = np.random.default_rng(0)
    for axes, row in zip(grid, rows, strict=False):
        returns = np.array([float(s["return"]) for s in seeds if s["task"] == row["task"]])
        height = spread.uniform(-0.3, 0.3, len(returns))
        dots, mean = style.colour(0), style.colour(1)
        if len(returns):
            axes.plot(returns, height, ".", color=dots, alpha=0.45, label="return of one seed")
        bounds = [float(row["ci95_low"]), float(row["ci95_high"])]
        axes.plot(bounds, [0, 0], color=mean, linewidth=3)
        name = "mean with 95 % interval"
        axes.plot(float(row["mean"]), 0, "D-", color=mean, markersize=6, linewidth=3, label=name)
        if (best := BEST.get(row["env"])) is not None:
            style.threshold(axes, best[0], vertical=True, name="best return that others report")
            axes.annotate(f" {best[1]} {best[0]:g}", (best[0], 0.56), va="top", fontsize=8)
        axes.set(ylim=(-0.6, 0.6), yticks=[])
        axes.spines.left.set_visible(False)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=5)
        where = "" if row["device"].startswith("cpu") else f", {row['device']}"
        about = f"mean return, {row['seeds']} seeds{where}"
        style.label(axes, title=row["env"].removesuffix("-MinAtar"), x=about)
    style.legend(figure)
    style.write(figure, path)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README: the rows that discriminate between projects, with intervals."""
    head = ("environment", "steps", "seeds", "mean return [95 %]", "others report")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        if r["env"] in SOLVED or "at random" in r["published"]:
            continue
        interval = f"{r['mean']} [{r['ci95_low']}, {r['ci95_high']}]"
        cells = (r["env"], f"{int(r['env_steps']):,}", r["seeds"], interval)
        lines.append("| " + " | ".join((*cells, r["published"])) + " |")
    return "\n".join(lines) + "\n"


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table in the terminal."""
    head = ("task", "steps", "seeds", "mean [95 %]", "median", "threshold", "share", "published")
    table = Table(*head)
    for r in rows:
        table.add_row(
            r["task"],
            f"{int(r['env_steps']):,}",
            str(r["seeds"]),
            f"{r['mean']} [{r['ci95_low']}, {r['ci95_high']}]",
            str(r["median"]),
            f"{r['threshold']} ({r['goal']})",
            str(r["fraction_at_threshold"]),
            r["published"],
        )
    Console(width=150).print(table)


def main(options: Options) -> None:
    """Run the tasks, merge their rows into the files, plot and print."""
    if options.list:
        for name, task in TASKS.items():
            print(f"{name:28} {task.steps:>12,} steps, {task.seeds} seeds")
        return
    if options.table:
        print(markdown(rows_of_all()), end="")
        return
    check_names("tasks", options.tasks, TASKS)
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
        merge(RESULTS / "learning_seeds.csv", per_seed, {"task": [*TASKS]})
        merged = merge(RESULTS / "learning.csv", [row], {"task": [*TASKS]})
        plot(rows_of_all(), seeds_of_all(), RESULTS / "learning.png")
        print_rows([row])
    print_rows(merged)


if __name__ == "__main__":
    main(tyro.cli(Options))
