"""Time to a trained agent: seconds from the start of the process to a threshold of greedy returns.

python -m benchmarks.throughput.trained NAME SEED STARTED

Each project uses its own settings for Pendulum: ppo_jax its preset, RLtools those of its zoo. After
every EVERY environment steps, EPISODES greedy episodes are evaluated in a NumPy implementation of
Pendulum, with the same initial states for both projects. Imports and compilation are included in
the time, and evaluations are not.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.worker import device, private_stdout

TASK, ENV, MARK = "pendulum", "Pendulum-v1", -200.0
EPISODES, LENGTH, EVERY = 100, 200, 4096
LIMIT = 500_000
# [N, 3] observations -> [N] torques in [-2, 2].
Act = Callable[[np.ndarray], np.ndarray]
# Settings of RLtools' zoo (src/rl/zoo/pendulum-v1/ppo.h): the rollout, the minibatches, and values
# that differ from the defaults of its Python interface.
ZOO = Configuration(
    "zoo", 4, 1024, env=ENV, activation="relu", epochs=2, minibatches=16, learning_rate=1e-3,
    gamma=0.95, entropy_coef=1.0,
)  # fmt: skip
ZOO_STD = 0.5


def play(act: Act) -> float:
    """The mean return over EPISODES episodes of Pendulum, always with the same initial states.

    Args:
        act: greedy policy.
    """
    rng = np.random.default_rng(0)
    angle, speed = rng.uniform(-np.pi, np.pi, EPISODES), rng.uniform(-1, 1, EPISODES)
    total = np.zeros(EPISODES)
    for _ in range(LENGTH):
        obs = np.stack([np.cos(angle), np.sin(angle), speed], 1).astype(np.float32)
        angle, speed, reward = swing(angle, speed, act(obs))
        total += reward
    return float(total.mean())


def swing(angle: np.ndarray, speed: np.ndarray, torque: np.ndarray) -> tuple[np.ndarray, ...]:
    """One step of Pendulum, with the dynamics of Gymnasium.

    Args:
        angle: [N] angles from upright, in radians.
        speed: [N] angular velocities, in radians per second.
        torque: [N] torques, which are clipped to [-2, 2].

    Returns:
        (angle [N], speed [N], reward [N]) after the step.
    """
    torque = np.clip(torque, -2.0, 2.0)
    off = (angle + np.pi) % (2 * np.pi) - np.pi
    reward = -(off**2 + 0.1 * speed**2 + 0.001 * torque**2)
    speed = np.clip(speed + 0.05 * (15.0 * np.sin(angle) + 3.0 * torque), -8.0, 8.0)
    return angle + 0.05 * speed, speed, reward


def cpu_seconds() -> float:
    """CPU seconds of this process and of the processes that it started, such as compilers."""
    return sum(os.times()[:4])


def until_trained(train: Callable[[], int], act: Act, started: float) -> dict[str, Any]:
    """Train until the greedy returns reach the threshold.

    Args:
        train: function without arguments that trains and returns the number of environment steps.
        act: greedy policy with the current parameters.
        started: start time of the process, in seconds since the epoch.

    Returns:
        A part of a row of the table.
    """
    steps, waited, worked, mean = 0, 0.0, 0.0, -np.inf
    while steps < LIMIT and mean < MARK:
        steps += train()
        clock, cpu = time.time(), cpu_seconds()
        mean = play(act)
        waited += time.time() - clock
        worked += cpu_seconds() - cpu
    return {
        "seconds": time.time() - started - waited,
        "cpu_seconds": cpu_seconds() - worked,
        "env_steps": steps,
        "reached": mean >= MARK,
    }


def ours(seed: int, started: float) -> dict[str, Any]:
    """Train ppo_jax with its preset, with the compiled program of a run."""
    import jax
    import jax.numpy as jnp

    from ppo_jax import config as configs
    from ppo_jax import guard, rollout
    from ppo_jax.experiment import compile_run
    from ppo_jax.train import build

    config = configs.make(env=ENV, seed=seed)
    program = build(config)
    compiled = compile_run(config, program)
    state = compiled.init()
    updates = max(1, EVERY // (config.num_envs * config.num_steps))

    def train() -> int:
        nonlocal state
        state, metrics, _ = compiled.chunk(state, compiled.floats, jnp.int32(updates))
        guard.show(metrics)
        return updates * config.num_envs * config.num_steps

    @jax.jit
    def greedy(params: Any, moments: Any, obs: jax.Array) -> jax.Array:
        seen = rollout.normalize_obs(moments, obs)
        _, dist, _ = program.policy.act(params, (), seen, jnp.zeros(len(obs), bool))
        return dist.to_env(dist.mode())

    def act(obs: np.ndarray) -> np.ndarray:
        moments = state.rollout.moments
        return np.asarray(greedy(state.learner.params, moments, jnp.asarray(obs))).reshape(-1)

    return until_trained(train, act, started)


def rltools(seed: int, started: float) -> dict[str, Any]:
    """Train RLtools with the settings of its zoo; its actions are in [-1, 1]."""
    from benchmarks.throughput.contestants import rltools as contestant

    contestant.check_compiler()
    settings = contestant.settings_of(ZOO) | {"INITIAL_ACTION_STD": ZOO_STD}
    program = contestant.Program(settings, ZOO.steps_per_update, 1)
    program.compile(seed)

    def train() -> int:
        return program.run(EVERY // ZOO.steps_per_update) * ZOO.steps_per_update

    def act(obs: np.ndarray) -> np.ndarray:
        return 2.0 * np.array([program.state.action(row)[0] for row in obs])

    return until_trained(train, act, started)


def main() -> None:
    """Measure one contestant with one seed, and print a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput.trained")
    parser.add_argument("name", choices=("ours", "rltools"))
    parser.add_argument("seed", type=int)
    parser.add_argument("started", type=float)
    options = parser.parse_args()
    answers = private_stdout()
    run = ours if options.name == "ours" else rltools
    found = run(options.seed, options.started)
    print(json.dumps(found | {"device": device()}), file=answers)


if __name__ == "__main__":
    sys.exit(main())
