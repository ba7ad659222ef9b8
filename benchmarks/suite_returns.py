"""Returns of PPO on tasks of optional suites, with the presets of the tasks.

python -m benchmarks.suite_returns                         the tasks of all installed suites
python -m benchmarks.suite_returns --tasks snake --seeds 8
python -m benchmarks.suite_returns --table                 print the committed results

The seeds of a task are trained in one vmapped program and then evaluated greedily over 128
episodes. The column `untrained` is the mean return of an initial policy with sampled actions, and
`sampled` that of the episodes that ended in the last tenth of the updates. The
table is written to benchmarks/results/suite_returns.csv, and the returns of each seed to
suite_returns_seeds.csv; rows of other tasks are kept.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.learning import EPISODES, FEWEST_SEEDS, FIRST_SEED
from benchmarks.names import check_names
from benchmarks.table import RESULTS, Row, merge, read
from ppo_jax import config as configs
from ppo_jax import envs
from ppo_jax.analysis import statistics
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.config.presets import PRESETS
from ppo_jax.evaluate import evaluate
from ppo_jax.runs import provenance
from ppo_jax.sweep import run_sweep
from ppo_jax.train import Program, build

# Preset -> largest return of a task; None: there is no bound, or it cannot be reached.
TASKS: dict[str, float | None] = {
    "doorkey": 1.0,
    "xland_doorkey": None,  # 1 - 0.9 of the used share of the time limit
    "craftax_classic": 22.0,
    "craftax": 226.0,
    "snake": 143.0,
    "game_2048": None,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the returns of the presets of optional suites.

    Attributes:
        tasks: presets to measure; by default those whose suites are installed.
        seeds: number of seeds of each task.
        table: only print the committed results, as in the documentation.
    """

    tasks: tuple[str, ...] = ()
    seeds: int = 5
    table: bool = False


def untrained(program: Program) -> float:
    """Mean return of the initial policy, with sampled actions."""
    state = jax.jit(program.init)(jax.random.key(FIRST_SEED))
    result = evaluate(
        jax.random.key(1),
        state.learner.params,
        state.rollout.moments,
        env=program.env,
        policy=program.policy,
        episodes=EPISODES,
        greedy=False,
    )
    return float(np.mean(result.episode_return))


def sampled(metrics: dict[str, Any]) -> float:
    """Mean return of the episodes that ended in the last tenth of the updates, over all seeds.

    Args:
        metrics: metrics [1, S, U] of a sweep of one configuration.
    """
    last = -(-metrics["episodes"].shape[-1] // 10)
    count, mean = (np.asarray(metrics[k])[..., -last:] for k in ("episodes", "episode_return"))
    return float(np.nansum(count * mean) / count.sum())


def measure(task: str, seeds: int) -> tuple[Row, np.ndarray]:
    """Train the seeds of a task.

    Returns:
        (row of the table, [seeds] mean greedy returns)
    """
    config = configs.make(preset=task, seed=FIRST_SEED)
    before, started = untrained(build(config)), time.perf_counter()
    _, metrics = run_sweep(config, [{}], seeds, episodes=EPISODES)
    returns = np.asarray(metrics["eval_return"][0].mean(axis=-1))
    seconds = time.perf_counter() - started
    return row_of(task, returns, (before, sampled(metrics)), seconds), returns


def row_of(task: str, returns: np.ndarray, others: tuple[float, float], seconds: float) -> Row:
    """A row of the table: the interval is a bootstrap interval of the mean over seeds."""
    config = configs.make(preset=task)
    low, high = (
        statistics.interval([returns], statistics.mean)
        if len(returns) >= FEWEST_SEEDS
        else ("", "")
    )
    digits = 3 if abs(returns).max() <= 1 else 2
    rounded = {"low": low, "high": high, "min": returns.min(), "max": returns.max()}
    return {
        "task": task,
        "env": config.env,
        "env_steps": config.num_updates * config.num_envs * config.num_steps,
        "seeds": len(returns),
        "untrained": round(others[0], digits),
        "sampled": round(others[1], digits),
        "mean": round(float(returns.mean()), digits),
        **{k: x if x == "" else round(float(x), digits) for k, x in rounded.items()},
        "largest": "" if TASKS[task] is None else TASKS[task],
        "seconds": round(seconds, 1),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def markdown(rows: list[Row]) -> str:
    """The table of docs/environments.md."""
    head = ("preset", "environment", "steps", "seeds", "untrained", "sampled", "greedy",
            "greedy, all seeds", "largest possible")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        mean = f"{r['mean']} [{r['low']}, {r['high']}]" if r["low"] != "" else r["mean"]
        cells: tuple[Any, ...] = (
            f"`{r['task']}`",
            f"`{r['env']}`",
            f"{int(r['env_steps']):,}",
            r["seeds"],
            r["untrained"],
            r["sampled"],
            mean,
            f"{r['min']} to {r['max']}",
            f"{float(r['largest']):g}" if r["largest"] else "",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def installed(task: str) -> bool:
    """Whether the suite of a task can be imported."""
    return envs.suites()[PRESETS[task]["env"].partition(":")[0]]


def main(options: Options) -> None:
    """Measure the tasks, write the rows and print the table."""
    if options.table:
        print(markdown(read(RESULTS / "suite_returns.csv")), end="")
        return
    check_names("tasks", options.tasks, TASKS)
    if options.seeds < 1:
        raise SystemExit(f"seeds is {options.seeds}; it must be >= 1")
    missing = [task for task in options.tasks if not installed(task)]
    if missing:
        raise SystemExit(f"tasks: the suite of {PRESETS[missing[0]]['env']} is not installed")
    one_device_per_core()
    for task in options.tasks or [task for task in TASKS if installed(task)]:
        row, returns = measure(task, options.seeds)
        seeds = [
            {"task": task, "seed": FIRST_SEED + i, "return": round(float(x), 3)}
            for i, x in enumerate(returns)
        ]
        merge(RESULTS / "suite_returns_seeds.csv", seeds, {"task": [*TASKS]})
        merge(RESULTS / "suite_returns.csv", [row], {"task": [*TASKS]})
        print(markdown(read(RESULTS / "suite_returns.csv")), end="", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
