"""A job that compiles quickly, run by several processes in the same way as the command `train`.

    python tests/cluster_worker.py FOLDER UPDATES --coordinator HOST:PORT --num-processes P ...

Files in the folder cause faults: with `hang-I`, a Python function called by process I's program
hangs; with `regex-I`, one that blocks all other threads hangs. `callback` makes a callback of
process 0 hang, `slow` makes it slow, and `raise` makes it raise an exception.
"""

import contextlib
import ctypes
import json
import re
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import parallel
from ppo_jax.cli.cluster import join
from ppo_jax.cli.errors import exit_with
from ppo_jax.runs import cluster, devices, loop
from ppo_jax.runs.checkpoint import Checkpoints
from ppo_jax.runs.cluster.follow import follow
from ppo_jax.runs.job import Job
from ppo_jax.runs.options import KeepOptions
from ppo_jax.runs.record import RunRecord
from ppo_jax.runs.signals import Signals

IDENTITY = {"job": "counting"}


def job_of(folder: Path, updates: int, parts: int) -> Job:
    """Each part draws its own random numbers; all parts share the mean."""
    rank = cluster.current().rank

    def look(x):
        if (folder / f"hang-{rank}").exists():
            time.sleep(1000)
        if (folder / f"regex-{rank}").exists():
            re.match(r"(a+)+$", "a" * 60 + "b")
        return np.float32(0)

    def step(state, frozen, floats):
        key, own = jax.random.split(state["key"])
        noise = jax.random.normal(parallel.own_key(own), state["part"].shape)
        part = 0.9 * state["part"] + noise
        zero = jax.pure_callback(look, jax.ShapeDtypeStruct((), jnp.float32), part.sum())
        mean = parallel.mean(part.mean() + zero)
        return {"mean": mean, "part": part, "key": key}, {"mean": mean}

    def init():
        return {"mean": jnp.zeros(()), "part": jnp.zeros((parts, 4)), "key": jax.random.key(1)}

    axes = {"mean": None, "part": 0, "key": None}
    return Job(
        name="counting",
        init=init,
        shapes=jax.eval_shape(init),
        step=step,
        updates=updates,
        unit="env_steps",
        units_per_update=1,
        headline="mean",
        rows=64,
        layout=devices.layout(jax.device_count(), axes),
    )


def hang(folder: Path):
    """A callback that reports the progress of the run, and hangs or fails if a file requests it."""

    def callback(progress, state):
        (folder / "at").write_text(str(progress.update))
        time.sleep(0.5 * (folder / "slow").exists())
        if (folder / "raise").exists():
            raise ValueError("no more")
        while (folder / "callback").exists():
            time.sleep(1)

    return callback


def work(folder: Path, updates: int) -> int:
    """The entry point of the command."""
    group = cluster.current()
    job = job_of(folder, updates, jax.device_count())
    run = folder / "run"
    resumed = Checkpoints(run / "checkpoints", IDENTITY, folder=run).steps()
    options = KeepOptions(resume=run if resumed else None, run_dir=run, checkpoint_seconds=0.5)
    loop.check(job, options)
    group.agree("commands", {"updates": updates})
    with Signals() as signals:
        if group.rank:
            made = lambda path: Checkpoints(path / "checkpoints", IDENTITY, folder=path)
            return follow(group, job, made, signals=signals).exit_code
        run.mkdir(exist_ok=True)
        about = {"about": {}, "config": {}, "quiet": True, "resume": "worker"}
        record = RunRecord(run, options, identity=IDENTITY, **about)
        result = loop.run(job, record, signals=signals, callbacks=[hang(folder)])
        numbers = {n: np.asarray(x).tolist() for n, x in group.own(result.state).items()
                   if n == "mean"}  # fmt: skip
        (folder / "result.json").write_text(json.dumps(numbers))
        return signals.exit_code


if __name__ == "__main__":
    with contextlib.suppress(OSError, AttributeError):  # SIGKILL when the parent process ends
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    words = sys.argv[3:]
    exit_with(lambda: work(Path(sys.argv[1]), int(sys.argv[2])), before=lambda: join(words))
