"""Returns of policies with each memory and without one on two partially observable tasks.

python -m benchmarks.recall                        16 seeds of each
python -m benchmarks.recall --tasks memory_chain --seeds 4

Every agent is trained with the preset of its task, in which only the memory is changed, and
evaluated greedily over 128 episodes. The table is written to benchmarks/results/recall.csv.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.table import RESULTS, merge, read
from ppo_jax import config as configs
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.networks import MEMORIES
from ppo_jax.runs import provenance
from ppo_jax.sweep import run_sweep

EPISODES = 128
# Preset -> the return that counts as solved.
TASKS = {"cartpole_positions": 475.0, "memory_chain": 0.95}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the returns of recurrent and feed-forward policies.

    Attributes:
        tasks: presets of the tasks to measure.
        memories: memories to measure: gru, lstm, mingru, gtrxl, none.
        seeds: number of seeds for each task and cell.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    memories: tuple[str, ...] = MEMORIES
    seeds: int = 16


def measure(task: str, memory: str, seeds: int) -> np.ndarray:
    """[seeds] greedy returns of one task and memory."""
    config = configs.make(preset=task, memory=memory)
    _, metrics = run_sweep(config, [{}], seeds, episodes=EPISODES)
    return np.asarray(metrics["eval_return"][0].mean(axis=-1))


def row_of(task: str, memory: str, returns: np.ndarray, seconds: float) -> dict[str, Any]:
    """A row of the table."""
    config = configs.make(preset=task, memory=memory)
    return {
        "task": task,
        "memory": memory,
        "env": config.env,
        "env_steps": config.total_timesteps,
        "seeds": len(returns),
        "mean": round(float(returns.mean()), 2),
        "min": round(float(returns.min()), 2),
        "max": round(float(returns.max()), 2),
        "threshold": TASKS[task],
        "solved": round(float((returns >= TASKS[task]).mean()), 4),
        "seconds": round(seconds, 1),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def markdown() -> str:
    """The table of docs/memory.md."""
    lines = ["| environment | steps | memory | mean return | worst | solved |", "|" + "---|" * 6]
    for r in read(RESULTS / "recall.csv"):
        solved = f"{float(r['solved']):.0%} of {r['seeds']} ≥ {float(r['threshold']):g}"
        cells = (r["env"], f"{int(r['env_steps']):,}", r["memory"], r["mean"], r["min"], solved)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measure, merge the rows into the table and print it."""
    one_device_per_core()
    for task in options.tasks:
        for memory in options.memories:
            started = time.perf_counter()
            returns = measure(task, memory, options.seeds)
            row = row_of(task, memory, returns, time.perf_counter() - started)
            order = {"task": [*TASKS], "memory": [*MEMORIES[1:], "none"]}
            merge(RESULTS / "recall.csv", [row], order)
            print(markdown(), end="", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
