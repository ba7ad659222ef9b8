"""Evaluate a trained Pong agent over a hundred games, and plot its learning curve.

python -m ppo_jax.train --preset pong --run-dir runs/pong
python -m benchmarks.pong runs/pong
python -m benchmarks.pong runs/watch_pong --curve      only the learning curve

The row is written to benchmarks/results/pong.csv, the curve to pong_curve.csv and to
docs/images/pong_learning.png. The committed curve is that of examples/watch_pong.py.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from benchmarks.table import RESULTS, read, replace
from ppo_jax.analysis import style
from ppo_jax.evaluate import confidence_interval, evaluate
from ppo_jax.runs import restore

CURVE = RESULTS / "pong_curve.csv"
IMAGE = Path(__file__).parent.parent / "docs/images/pong_learning.png"
# Number of rollouts that a point of the curve averages over.
WINDOW = 20


@dataclasses.dataclass(frozen=True)
class Options:
    """Evaluate the agent of a run.

    Attributes:
        run: run directory of the agent.
        games: number of games, played greedily.
        curve: only write and plot the learning curve.
    """

    run: Annotated[Path, tyro.conf.Positional]
    games: int = 100
    curve: bool = False


def curve(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps, and the mean return over the last WINDOW rollouts with a finished game."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ended = [(r["env_step"], r["episode_return"]) for r in lines if r["episode_return"] is not None]
    steps, returns = (np.array(x, float) for x in zip(*ended, strict=True))
    total = np.cumsum(np.insert(returns, 0, 0.0))
    return steps[WINDOW - 1 :], (total[WINDOW:] - total[:-WINDOW]) / WINDOW


def measure(options: Options) -> dict[str, Any]:
    """A row of the table."""
    config, program, state = restore.load(options.run)
    result = evaluate(
        jax.random.key(1),
        state.learner.params,
        state.rollout.moments,
        env=program.env,
        policy=program.policy,
        episodes=options.games,
    )
    returns = np.asarray(result.episode_return)
    low, high = confidence_interval(returns)
    steps, means = curve(options.run)
    summary = json.loads((options.run / "summary.json").read_text())
    return {
        "algorithm": config.algorithm,
        "env_args": " ".join(config.env_args),
        "gamma": config.hyper.gamma,
        "seed": config.seed,
        "env_steps": summary["env_steps"],
        "games": options.games,
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


def write_curve(run: Path) -> None:
    """Write the learning curve of a run to CURVE."""
    lines = [f"{step:.0f},{value:.2f}\n" for step, value in zip(*curve(run), strict=True)]
    CURVE.write_text("".join(["env_step,episode_return\n", *lines]))


@style.styled
def plot() -> None:
    """Plot the return over environment steps, from CURVE."""
    rows = read(CURVE)
    steps, means = (np.array([float(r[n]) for r in rows]) for n in ("env_step", "episode_return"))
    figure, (axes,) = style.figure(size=(8, 4))
    axes.plot(steps, means)
    style.threshold(axes, 0)
    style.label(axes, x="environment steps", y=f"episode return, mean of {WINDOW} rollouts")
    axes.set_ylim(-21, 21)
    axes.xaxis.set_major_formatter(style.short)
    style.write(figure, IMAGE)


def markdown() -> str:
    """The table of docs/pong.md."""
    head = (
        "algorithm",
        "arguments",
        "γ",
        "steps",
        "return of 100 games [95 %]",
        "ahead after",
        "wall-clock time",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in read(RESULTS / "pong.csv"):
        interval = f"{r['mean']} [{r['ci95_low']}, {r['ci95_high']}]"
        minutes = f"{float(r['seconds']) / 60:.0f} min"
        steps = f"{int(r['env_steps']):,}"
        ahead = f"{int(r['ahead_at']):,} steps" if r["ahead_at"] else "never"
        cells = (r["algorithm"], r["env_args"], r["gamma"], steps, interval, ahead, minutes)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Evaluate, merge the row into the table, plot and print."""
    write_curve(options.run)
    plot()
    if options.curve:
        return
    row = measure(options)
    same = ("algorithm", "env_args", "gamma", "seed", "env_steps")
    replace(RESULTS / "pong.csv", [row], same, lambda r: [str(r[c]) for c in same])
    print(markdown(), end="")


if __name__ == "__main__":
    main(tyro.cli(Options))
