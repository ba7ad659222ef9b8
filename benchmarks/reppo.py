"""Returns of REPPO and PPO with the same number of environment steps.

python -m benchmarks.reppo                         8 seeds of each, Pendulum-v1
python -m benchmarks.reppo --algorithms reppo --steps 300000 --seeds 32

Every agent is trained with the preset of its algorithm, in which only the number of steps may be
changed, and evaluated greedily over 128 episodes. The rows are written to
benchmarks/results/reppo.csv; rows with another number of steps are kept.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.table import RESULTS, read, replace
from ppo_jax import config as configs
from ppo_jax.analysis.statistics import interquartile_mean, interval
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.runs import provenance
from ppo_jax.sweep import run_sweep

EPISODES = 128
ALGORITHMS = ("reppo", "ppo")
SAME = ("env", "algorithm", "env_steps")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the returns of REPPO and PPO.

    Attributes:
        algorithms: algorithms to measure.
        env: environment, for which each algorithm needs a preset.
        steps: number of environment steps of a run.
        seeds: number of seeds of each algorithm.
    """

    algorithms: tuple[str, ...] = ALGORITHMS
    env: str = "Pendulum-v1"
    steps: int = 150_000
    seeds: int = 8


def row_of(config: configs.TrainConfig, returns: np.ndarray, seconds: float) -> dict[str, Any]:
    """A row of the table, from the greedy returns [S]."""
    low, high = interval([returns])
    return {
        "env": config.env,
        "algorithm": config.algorithm,
        "env_steps": config.total_timesteps,
        "seeds": len(returns),
        "mean": round(float(returns.mean()), 1),
        "iqm": round(float(interquartile_mean(returns)), 1),
        "ci95_low": round(float(low), 1),
        "ci95_high": round(float(high), 1),
        "min": round(float(returns.min()), 1),
        "returns": " ".join(f"{r:.1f}" for r in returns),
        "seconds": round(seconds, 1),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def main(options: Options) -> None:
    """Measure, merge the new rows into the file, and print it."""
    one_device_per_core()
    path = RESULTS / "reppo.csv"
    for algorithm in options.algorithms:
        started = time.perf_counter()
        config = configs.make(env=options.env, algorithm=algorithm, total_timesteps=options.steps)
        _, metrics = run_sweep(config, [{}], options.seeds, episodes=EPISODES)
        returns = np.asarray(metrics["eval_return"][0].mean(axis=-1))
        row = row_of(config, returns, time.perf_counter() - started)
        replace(path, [row], SAME, lambda row: [str(row[name]) for name in SAME])
    for row in read(path):
        print(row)


if __name__ == "__main__":
    main(tyro.cli(Options))
