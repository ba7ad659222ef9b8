"""Checks of training, resuming and arithmetic on a device, run before speed is measured."""

import contextlib
import io
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.accelerator.tasks import Context, Measured, NotAvailable, Task
from ppo_jax import config as configs
from ppo_jax.config import TrainConfig
from ppo_jax.experiment import RunOptions
from ppo_jax.experiment import train as run
from ppo_jax.runs.folder import checkpoints_of
from ppo_jax.train import build
from ppo_jax.types import PyTree, TrainState

SOLVED = 475.0
# The largest relative difference that counts as agreement.
TOLERANCE = 1e-3


def tasks() -> list[Task]:
    """The checks: a training run, a resumed run, and the first update compared with the CPU."""
    return [
        Task("checks", "cartpole-trained", trained, patience=90.0),
        Task("checks", "cartpole-resumed", resumed, patience=90.0),
        Task("checks", "first-update-as-on-cpu", first_update, patience=90.0),
    ]


def trained(context: Context) -> Measured:
    """Train and evaluate CartPole as `python -m ppo_jax.train` does."""
    steps, episodes = (4096, 4) if context.smoke else (100_000, 128)
    config = configs.make(preset="cartpole", total_timesteps=steps)
    with quiet_folder() as folder:
        run(config, RunOptions(run_dir=folder / "run", eval_episodes=episodes))
        summary = json.loads((folder / "run" / "summary.json").read_text())
    mean = summary["eval_return_mean"]
    return {
        "value": round(mean, 2),
        "unit": "mean greedy return",
        "threshold": SOLVED,
        # A smoke run is too short to reach the threshold.
        "passed": summary["status"] == "finished" and (context.smoke or mean >= SOLVED),
        "env_steps": summary["env_steps"],
        "compile_seconds": summary["compile_seconds"],
        "measured_seconds": summary["train_seconds"],
    }


def resumed(context: Context) -> Measured:
    """The relative difference between the parameters of a resumed and an uninterrupted run.

    It is 0 on a device that computes reproducibly. The runs are short, because training amplifies
    rounding errors.
    """
    del context
    long = configs.make(preset="cartpole", total_timesteps=4096, anneal_timesteps=4096.0)
    short = configs.make(preset="cartpole", total_timesteps=2048, anneal_timesteps=4096.0)
    with quiet_folder() as folder:
        two, one = folder / "resumed", folder / "uninterrupted"
        run(short, RunOptions(run_dir=two, eval_episodes=0))
        run(long, RunOptions(resume=two, eval_episodes=0))
        run(long, RunOptions(run_dir=one, eval_episodes=0))
        steps = json.loads((two / "summary.json").read_text())["env_steps"]
        apart = distance(final_parameters(two, long), final_parameters(one, long))
    return {
        "value": apart,
        "unit": "relative difference of parameters",
        "threshold": TOLERANCE,
        "passed": apart <= TOLERANCE and steps == 4096,
        "env_steps": steps,
    }


@contextlib.contextmanager
def quiet_folder() -> Iterator[Path]:
    """A temporary folder for runs, whose output is suppressed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        yield Path(folder)


def final_parameters(path: Path, config: TrainConfig) -> PyTree:
    """The parameters of a run's last checkpoint."""
    shapes = jax.eval_shape(build(config).init, jax.random.key(config.seed))
    return checkpoints_of(path, config).restore(shapes)[1].learner.params


def first_update(context: Context) -> Measured:
    """Compare the first update of PPO on the device and on the CPU, with products in float32."""
    device, cpu = jax.devices()[0], cpu_device()
    size = 8 if context.smoke else 64
    config = configs.make(preset="cartpole", num_envs=size, num_steps=32, total_timesteps=10**6)
    started = time.perf_counter()
    with jax.default_matmul_precision("highest"):
        with jax.default_device(cpu):
            start = jax.jit(build(config).init)(jax.random.key(0))
        here, there = (change(config, start, d) for d in (device, cpu))
    apart = distance(here, there)
    return {
        "value": apart,
        "unit": "relative difference of the change",
        "threshold": TOLERANCE,
        "passed": apart <= TOLERANCE,
        "precision": "highest",
        "measured_seconds": round(time.perf_counter() - started, 2),
        "note": f"{device.device_kind} and {cpu.device_kind}",
    }


def cpu_device() -> Any:
    """The CPU device of JAX.

    Raises:
        NotAvailable: JAX_PLATFORMS names only the accelerator.
    """
    try:
        return jax.devices("cpu")[0]
    except RuntimeError as error:
        raise NotAvailable("JAX has no CPU device; set JAX_PLATFORMS to cuda,cpu") from error


def change(config: TrainConfig, state: TrainState, device: Any) -> PyTree:
    """The change of the parameters by one update on a device."""
    before = jax.device_put(state, device)
    with jax.default_device(device):
        after = jax.jit(build(config).step)(before)[0]
    return jax.tree.map(jnp.subtract, after.learner.params, before.learner.params)


def distance(a: PyTree, b: PyTree) -> float:
    """‖a − b‖ / ‖b‖ over all leaves, in float64; infinity if a number is not finite."""
    x, y = (np.asarray(ravel_pytree(jax.device_get(t))[0], np.float64) for t in (a, b))
    found = float(np.linalg.norm(x - y) / np.linalg.norm(y))
    return found if math.isfinite(found) else math.inf
