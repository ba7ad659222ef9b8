"""What many seeds learn on this device, as a sweep trains them, until they or the time are done."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import roofline
from benchmarks.accelerator.tasks import Context, Measured, Task
from benchmarks.learning import EPISODES, TASKS, interval
from ppo_jax import config as configs
from ppo_jax import guard
from ppo_jax.runs.chunk import next_count
from ppo_jax.sweep import program as sweep

SEEDS = 64
# Names in benchmarks.learning, which states their thresholds.
CHECKED = ("cartpole_100k", "breakout")
# Share of the time that is kept for the evaluation at the end.
EVALUATION_SHARE = 0.2


def tasks() -> list[Task]:
    """CartPole, then Breakout-MinAtar."""
    return [
        Task("learning", "cartpole_100k", lambda c: measure("cartpole_100k", c), patience=90.0),
        Task("learning", "breakout", lambda c: measure("breakout", c), patience=400.0, least=45.0),
    ]


def measure(name: str, context: Context) -> Measured:
    """Train all seeds side by side, evaluate each, and say what they reached.

    Where the time is up before the last update, the agents are evaluated as they then are, and
    `env_steps` says how far they came.
    """
    task = TASKS[name]
    seeds, episodes, total = (2, 2, 2**14) if context.smoke else (SEEDS, EPISODES, task.steps)
    config = configs.make(preset=task.preset, total_timesteps=total, seed=0)
    if context.smoke:
        config = dataclasses.replace(config, hidden=(8, 8))
    static, floats = sweep.structure(config)
    devices = jax.devices()
    started = time.perf_counter()
    width = sweep.even_width(seeds, seeds, len(devices))
    program = sweep.compile_program(static, None, width, devices, episodes=episodes)
    compiled = time.perf_counter() - started
    numbers = jnp.arange(program.agents, dtype=jnp.uint32)
    values = {n: jnp.full(program.agents, x, jnp.float32) for n, x in floats.items()}
    until = started + (1 - EVALUATION_SHARE) * context.seconds
    state, updates, seconds = train(
        program, numbers, values, updates=static.num_updates, until=until
    )
    assert program.evaluate is not None, "there are episodes"
    found = np.asarray(program.evaluate(numbers, state, values)[0])[:seeds].mean(axis=-1)
    low, high = interval(found)
    steps = updates * config.num_envs * config.num_steps
    rate = steps * program.agents / seconds
    return {
        "value": round(float(found.mean()), 2),
        "unit": "mean greedy return",
        "low": round(low, 2),
        "high": round(high, 2),
        "seeds": seeds,
        "threshold": task.mark,
        "share_reaching": round(float((found >= task.mark).mean()), 4),
        "env_steps": steps,
        "compile_seconds": round(compiled, 2),
        "measured_seconds": round(seconds, 2),
        "program_mb": round(program.bytes_needed / 2**20, 1),
        "note": "all updates" if updates == static.num_updates else "the time was up",
        **roofline.shares(roofline.work_of(config), rate, context.ceilings),
    }


def train(
    program: sweep.AgentsProgram,
    seeds: jax.Array,
    floats: dict[str, Any],
    *,
    updates: int,
    until: float,
) -> tuple[Any, int, float]:
    """Train until the last update or the time, whichever comes first.

    Unlike the loop of a sweep it has a state to evaluate when the time is up.

    Args:
        program: compiled for as many agents as there are seeds.
        seeds: [S] uint32.
        floats: name -> [S].
        updates: number of the last update.
        until: the time, as of time.perf_counter.

    Returns:
        (states [S, ...], updates made, seconds)
    """
    state = jax.block_until_ready(program.init(seeds, floats))
    done, count, started = 0, 1, time.perf_counter()
    while done < updates and (done == 0 or time.perf_counter() < until):
        begun, count = time.perf_counter(), min(count, updates - done)
        state, metrics, _ = program.advance(state, floats, jnp.int32(count))
        guard.show(metrics)
        done += count
        count = next_count(count, time.perf_counter() - begun, min(sweep.SLICE, updates))
    return state, done, time.perf_counter() - started
