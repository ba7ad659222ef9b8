"""Returns of many seeds that are trained on the device as a sweep, within the time limit."""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import roofline
from benchmarks.accelerator.tasks import Context, Measured, NotAvailable, Task
from benchmarks.learning import EPISODES, TASKS, interval
from ppo_jax import config as configs
from ppo_jax import guard
from ppo_jax.runs.chunk import next_count
from ppo_jax.sweep import program as sweep

SEEDS = 64
# Names of tasks in benchmarks.learning, which defines their thresholds.
CHECKED = ("cartpole_100k", "breakout")
# The other games of MinAtar; Seaquest is last, because its simulation is the slowest.
GAMES = ("asterix", "freeway", "space_invaders", "seaquest")
# Fraction of the time that is reserved for the evaluation at the end.
EVALUATION_SHARE = 0.2


def tasks() -> list[Task]:
    """One task for CartPole and one for each game of MinAtar."""
    control = Task("learning", "cartpole_100k", functools.partial(measure, "cartpole_100k"), 90.0)
    return [control, *map(_game, ("breakout", *GAMES))]


def _game(name: str) -> Task:
    return Task("learning", name, functools.partial(measure, name), patience=400.0, least=45.0)


def measure(name: str, context: Context) -> Measured:
    """Train all seeds in parallel, evaluate each, and return statistics of their returns.

    If the time is up before the last update, the agents are evaluated as they are, and `env_steps`
    is the number of steps until then.

    Raises:
        NotAvailable: the run is a smoke run, in which Breakout represents all games.
    """
    if context.smoke and name in GAMES:
        raise NotAvailable("a smoke run trains only Breakout of the games")
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
    assert program.evaluate is not None, "the program has an evaluation, since episodes > 0"
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
        "threshold": task.threshold,
        "share_reaching": round(float((found >= task.threshold).mean()), 4),
        "env_steps": steps,
        "compile_seconds": round(compiled, 2),
        "measured_seconds": round(seconds, 2),
        "program_mb": round(program.bytes_needed / 2**20, 1),
        "note": "all updates" if updates == static.num_updates else "the time was up",
        "returns": [round(float(x), 3) for x in found],
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
    """Train until the last update or the end of the time, whichever comes first.

    Unlike the loop of a sweep, this function returns a state to evaluate when the time is up.

    Args:
        program: program compiled for S agents.
        seeds: [S] uint32, random seeds of the agents.
        floats: float hyperparameters of the agents, name -> [S].
        updates: number of updates of the whole run.
        until: value of time.perf_counter() at the end of the time.

    Returns:
        (states [S, ...], number of updates made, seconds of training)
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
