"""Time to quality: seconds from the start of the process until an agent reaches a threshold.

Each project uses its own settings for the task: ppo_jax its preset, PureJaxRL the configuration in
its ppo.py (for MinAtar in examples/brax_minatar.ipynb). The threshold is reached when the mean
return of the training episodes in the last WINDOW updates is at least as high. Imports and
compilation are included. PureJaxRL returns only after a whole run, so its time is the fraction of
the run until the threshold was reached. On Pendulum, greedy episodes are evaluated by `trained`,
because RLtools does not report returns during training.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import Row
from benchmarks.throughput import trained
from benchmarks.throughput.race import NAMES, ROOT, Settings
from benchmarks.throughput.worker import device

WINDOW = 10
# Task -> (environment, threshold, settings of PureJaxRL).
CARTPOLE = {"ENV_NAME": "CartPole-v1", "NUM_ENVS": 4, "TOTAL_TIMESTEPS": 5e5, "LR": 2.5e-4}
BREAKOUT = {"ENV_NAME": "Breakout-MinAtar", "NUM_ENVS": 64, "TOTAL_TIMESTEPS": 1e7, "LR": 5e-3}
TASKS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "cartpole": ("CartPole-v1", 475.0, CARTPOLE),
    "breakout": ("Breakout-MinAtar", 40.0, BREAKOUT | {"NUM_MINIBATCHES": 8, "ACTIVATION": "relu"}),
    trained.TASK: (trained.ENV, trained.MARK, {}),
}
PUREJAXRL = {
    "NUM_STEPS": 128, "UPDATE_EPOCHS": 4, "NUM_MINIBATCHES": 4, "GAMMA": 0.99, "GAE_LAMBDA": 0.95,
    "CLIP_EPS": 0.2, "ENT_COEF": 0.01, "VF_COEF": 0.5, "MAX_GRAD_NORM": 0.5, "ACTIVATION": "tanh",
    "ANNEAL_LR": True, "DEBUG": False,
}  # fmt: skip
FIELDS = (
    "jax", "device", "task", "threshold", "implementation", "seed", "seconds", "cpu_seconds",
    "env_steps", "reached", "commit",
)  # fmt: skip
KEY = ("jax", "device", "task", "implementation", "seed")


def reached_at(returns: np.ndarray, episodes: np.ndarray, threshold: float) -> int | None:
    """The first update at which the mean over the last WINDOW updates reaches the threshold.

    Args:
        returns: [U] mean returns of the episodes that ended in each update; NaN for none.
        episodes: [U] numbers of these episodes.
        threshold: threshold of the mean return.

    Returns:
        Number of the update, counted from 1; None if the threshold was not reached.
    """
    total = np.cumsum(np.nan_to_num(returns) * episodes)
    count = np.cumsum(episodes)
    for u in range(WINDOW, len(returns) + 1):
        before = u - WINDOW - 1
        ended = count[u - 1] - (count[before] if before >= 0 else 0)
        earned = total[u - 1] - (total[before] if before >= 0 else 0)
        if ended and earned / ended >= threshold:
            return u
    return None


def ours(task: str, seed: int, started: float) -> dict[str, Any]:
    """Train ppo_jax with its preset until it reaches the threshold."""
    import jax.numpy as jnp

    from ppo_jax import config as configs
    from ppo_jax import guard
    from ppo_jax.experiment import compile_run
    from ppo_jax.runs.chunk import next_count
    from ppo_jax.train import build

    env, threshold, _ = TASKS[task]
    config = configs.make(env=env, seed=seed)
    compiled = compile_run(config, build(config))
    state = compiled.init()
    found: dict[str, list[float]] = {"episode_return": [], "episodes": []}
    done, updates, size = 0, 1, config.num_envs * config.num_steps
    while done < config.num_updates:
        updates = min(updates, config.num_updates - done)
        before = time.perf_counter()
        state, hidden, _ = compiled.chunk(state, compiled.floats, jnp.int32(updates))
        metrics = guard.show(hidden)
        for name, kept in found.items():
            kept.extend(np.asarray(metrics[name])[:updates].tolist())
        done += updates
        if reached_at(*map(np.array, found.values()), threshold) is not None:
            break
        updates = min(next_count(updates, time.perf_counter() - before), 64)
    return {
        "seconds": time.time() - started,
        "cpu_seconds": trained.cpu_seconds(),
        "env_steps": done * size,
        "reached": reached_at(*map(np.array, found.values()), threshold) is not None,
    }


def purejaxrl(task: str, seed: int, started: float, folder: str) -> dict[str, Any]:
    """Run PureJaxRL, and determine when it reached the threshold."""
    import jax

    from benchmarks.throughput.contestants.purejaxrl import make_importable

    make_importable(Path(folder))
    from ppo import make_train

    _, threshold, settings = TASKS[task]
    config = PUREJAXRL | settings
    train = jax.jit(make_train(config)).lower(jax.random.PRNGKey(seed)).compile()
    compiled, busy = time.time(), trained.cpu_seconds()
    metrics = jax.block_until_ready(train(jax.random.PRNGKey(seed)))["metrics"]
    running, working = time.time() - compiled, trained.cpu_seconds() - busy
    ended = np.asarray(metrics["returned_episode"]).reshape(len(metrics["timestep"]), -1)
    returns = np.asarray(metrics["returned_episode_returns"]).reshape(ended.shape)
    episodes = ended.sum(axis=1)
    means = (returns * ended).sum(axis=1) / np.maximum(episodes, 1)
    update = reached_at(means, episodes, threshold)
    share = (update or len(ended)) / len(ended)
    return {
        "seconds": compiled - started + share * running,
        "cpu_seconds": busy + share * working,
        "env_steps": round(share * config["TOTAL_TIMESTEPS"]),
        "reached": update is not None,
    }


def quality(
    tasks: list[str], seeds: int, contestants: tuple[str, ...], settings: Settings, jax: str
) -> list[Row]:
    """Measure ppo_jax and PureJaxRL (RLtools on Pendulum) on each task and seed, in turns."""
    rows = []
    for task in tasks:
        for seed in range(seeds):
            for name in ("ours", "rltools" if task == trained.TASK else "purejaxrl"):
                absent = name == "purejaxrl" and settings.purejaxrl is None
                if absent or name not in contestants:
                    continue
                row = {
                    "jax": jax,
                    "task": task,
                    "threshold": TASKS[task][1],
                    "implementation": NAMES[name],
                    "seed": seed,
                    **_in_own_process(name, task, seed, settings),
                }
                print(row, flush=True)
                rows.append(row)
    return rows


def _in_own_process(name: str, task: str, seed: int, settings: Settings) -> dict[str, Any]:
    folder = str(Path(settings.purejaxrl or "").resolve())
    python = sys.executable if name == "ours" else settings.peers
    words = [python, "-m", "benchmarks.throughput.quality", name, task, str(seed)]
    if task == trained.TASK:
        words, folder = [python, "-m", "benchmarks.throughput.trained", name, str(seed)], ""
    # Without a cache all contestants compile, as at a first start.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    result = subprocess.run(
        [*words, repr(time.time()), *([folder] if folder else [])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{NAMES[name]} failed on {task}:\n{result.stderr[-2000:]}")
    found = json.loads(result.stdout.splitlines()[-1])
    return found | {name: round(found[name], 2) for name in ("seconds", "cpu_seconds")}


def markdown(rows: list[Row]) -> str:
    """A table of medians and ranges over seeds."""
    lines = [
        "| task | implementation | reached | seconds: median [range] | CPU seconds | "
        "environment steps |",
        "|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((r["jax"], r["task"], r["implementation"]) for r in rows):
        mine = [r for r in rows if (r["jax"], r["task"], r["implementation"]) == key]
        good = [r for r in mine if str(r["reached"]) == "True"]
        cells = [f"{key[1]} {float(mine[0]['threshold']):g} (jax {key[0]})", key[2]]
        cells.append(f"{len(good)} of {len(mine)}")
        seconds = [float(r["seconds"]) for r in good]
        steps = [float(r["env_steps"]) for r in good]
        if good:
            cells.append(f"{np.median(seconds):.1f} [{min(seconds):.1f}, {max(seconds):.1f}]")
            cpu = [float(r["cpu_seconds"]) for r in good if r.get("cpu_seconds")]
            cells.append(f"{np.median(cpu):.1f}" if cpu else "")
            cells.append(f"{np.median(steps):,.0f}")
        else:
            cells += ["never", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    who, which, number, began, *where = sys.argv[1:]
    arguments = (which, int(number), float(began))
    found = ours(*arguments) if who == "ours" else purejaxrl(*arguments, *where)
    print(json.dumps(found | {"device": device()}))
