"""Evaluate trained Pong agents over a hundred games each, and plot their learning curves.

python -m ppo_jax.train --preset pong_cnn --seed 0 --run-dir runs/pong0
python -m benchmarks.pong runs/pong0 runs/pong1 runs/pong2
python -m benchmarks.pong runs/pong0 runs/pong1 runs/pong2 --curves     also the figure

The rows are written to benchmarks/results/pong.csv, the curves to pong_curves.csv and to
docs/images/pong_learning.png.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

import ppo_jax
from benchmarks.table import RESULTS, Row, read, replace
from ppo_jax.analysis import style
from ppo_jax.evaluate import confidence_interval
from ppo_jax.experiment import evaluate_run

CURVES = RESULTS / "pong_curves.csv"
IMAGE = Path(__file__).parent.parent / "docs/images/pong_learning.png"
# Number of rollouts that a point of the curve averages over.
WINDOW = 20
# Largest number of points of a curve in the file.
POINTS = 150


# Columns that identify an agent.
SAME = ("env", "algorithm", "network", "env_args", "gamma", "seed", "env_steps")


@dataclasses.dataclass(frozen=True)
class Options:
    """Evaluate the agents of runs.

    Attributes:
        runs: run directories of the agents.
        games: number of games of each agent, played greedily.
        curves: write and plot the learning curves of these runs, too.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    games: int = 100
    curves: bool = False


def curve(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps, and the mean return over the last WINDOW rollouts with a finished game."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ended = [(r["env_step"], r["episode_return"]) for r in lines if r["episode_return"] is not None]
    steps, returns = (np.array(x, float) for x in zip(*ended, strict=True))
    total = np.cumsum(np.insert(returns, 0, 0.0))
    return steps[WINDOW - 1 :], (total[WINDOW:] - total[:-WINDOW]) / WINDOW


def measure(run: Path, games: int) -> Row:
    """A row of the table."""
    agent = ppo_jax.load(run)
    config = agent.config
    result = evaluate_run(agent, games)
    returns = np.asarray(result.episode_return)
    low, high = confidence_interval(returns)
    steps, means = curve(run)
    summary = json.loads((run / "summary.json").read_text())
    return {
        "env": config.env,
        "algorithm": config.algorithm,
        "network": config.network,
        "env_args": " ".join(config.env_args),
        "gamma": config.hyper.gamma,
        "seed": config.seed,
        "env_steps": summary["env_steps"],
        "games": games,
        "mean": round(float(returns.mean()), 2),
        "ci95_low": round(low, 2),
        "ci95_high": round(high, 2),
        "min": int(returns.min()),
        "max": int(returns.max()),
        "game_steps": round(float(np.mean(result.episode_length)), 1),
        "ahead_at": int(steps[np.argmax(means > 0)]) if (means > 0).any() else "",
        "seconds": round(summary["compile_seconds"] + summary["train_seconds"]),
        "device": summary["device"],
        "jax": jax.__version__,
    }


def write_curves(runs: tuple[Path, ...]) -> None:
    """Write the learning curves of runs to CURVES, with at most POINTS points each."""
    for run in runs:
        config, (steps, returns) = ppo_jax.load(run).config, curve(run)
        who = {"env": config.env, "env_args": " ".join(config.env_args), "seed": config.seed}
        rows: list[Row] = [
            who | {"env_step": int(steps[i]), "episode_return": round(float(returns[i]), 2)}
            for i in np.unique(np.linspace(0, len(steps) - 1, POINTS).astype(int))
        ]
        replace(CURVES, rows, (*who, "env_step"), place, functools.partial(differs, who=who))


def place(point: Row) -> tuple[str, str, int, int]:
    """The position of a point in CURVES."""
    return point["env"], point["env_args"], int(point["seed"]), int(point["env_step"])


def differs(point: Row, who: Row) -> bool:
    """Whether a point belongs to another agent."""
    return any(point[name] != str(value) for name, value in who.items())


@style.styled
def plot() -> None:
    """Plot the returns over environment steps from CURVES: a panel for each environment and its
    arguments, a line for each seed."""
    curves: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for r in read(CURVES):
        curves.setdefault((r["env"], r["env_args"]), {}).setdefault(r["seed"], []).append(r)
    figure, grid = style.figure(1, len(curves), size=(4 * len(curves), 3.6))
    for axes, ((env, arguments), seeds) in zip(grid, curves.items(), strict=True):
        for i, (seed, mine) in enumerate(seeds.items()):
            x, y = (np.array([float(r[c]) for r in mine]) for c in ("env_step", "episode_return"))
            style.line(axes, x, y, rank=i, name=f"seed {seed}")
        style.threshold(axes, 0)
        hard = ", hard" if "difficulty=hard" in arguments else ""
        title = f"{env.rpartition(':')[2]}{hard}"
        style.label(axes, title=title, x="environment steps", y="episode return")
        axes.set_ylim(-21, 21)
        axes.xaxis.set_major_formatter(style.short)
    style.legend(figure)
    style.write(figure, IMAGE)


def markdown(env: str = "Pong") -> str:
    """The table of docs/pong.md, or with the name of its environment that of docs/atari.md."""
    head = (
        "algorithm",
        "network",
        "arguments",
        "γ",
        "seed",
        "steps",
        "return of 100 games [95 %]",
        "ahead after",
        "wall-clock time",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in (row for row in read(RESULTS / "pong.csv") if row["env"] == env):
        interval = f"{r['mean']} [{r['ci95_low']}, {r['ci95_high']}]"
        minutes = f"{float(r['seconds']) / 60:.0f} min"
        steps = f"{int(r['env_steps']):,}"
        ahead = f"{int(r['ahead_at']):,} steps" if r["ahead_at"] else "never"
        about = (r["algorithm"], r["network"], r["env_args"], r["gamma"], r["seed"])
        cells = (*about, steps, interval, ahead, minutes)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Evaluate, merge the rows into the table, plot and print."""
    if options.curves:
        write_curves(options.runs)
        plot()
    for run in options.runs:
        row = measure(run, options.games)
        replace(RESULTS / "pong.csv", [row], SAME, lambda r: [str(r[c]) for c in SAME])
    for env in dict.fromkeys(r["env"] for r in read(RESULTS / "pong.csv")):
        print(env, markdown(env), sep="\n\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
