"""The loop of processes other than process 0: they run the programs that process 0 announces."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.runs import failures, memory
from ppo_jax.runs.checkpoint import Checkpoints
from ppo_jax.runs.chunk import Chunk
from ppo_jax.runs.cluster.group import Group
from ppo_jax.runs.cluster.watch import LONG_WORK
from ppo_jax.runs.job import Job, Result, RunFailed
from ppo_jax.runs.signals import Signals


def follow(
    group: Group, job: Job, checkpoints_of: Callable[[Path], Checkpoints], *, signals: Signals
) -> Result:
    """Take part in a job until process 0 ends it.

    Args:
        group: group of processes.
        job: the same job as in process 0.
        checkpoints_of: function, folder of a run -> its checkpoints.
        signals: signal handlers of the command; signals are passed on to process 0.

    Returns:
        Result(the last state, {}, the run's folder, the exit code of process 0).

    Raises:
        RunFailed: a program failed in this process.
        CheckpointError: the checkpoint that process 0 restored cannot be read by this process.
    """
    group.attend(signals, str)
    try:
        with failures.quiet():
            return _follow(group, job, checkpoints_of, signals)
    except jax.errors.JaxRuntimeError as error:
        if memory.is_exhausted(error):
            raise RunFailed(memory.exhausted(error)) from error
        raise group.broken(error) from error


def _follow(
    group: Group, job: Job, checkpoints_of: Callable[[Path], Checkpoints], signals: Signals
) -> Result:
    state: Any = None
    chunk: Chunk | None = None
    path: Path | None = None
    more = (job.frozen,) if jax.tree.leaves(job.frozen) else ()
    while (command := group.next())["do"] != "end":
        if command["do"] == "begin":
            path = Path(command["path"]) if command["path"] else None
            again = f"start all processes again with --resume {path}" if path else ""
            group.attend(signals, functools.partial(str, again))
            state = restored(group, job, checkpoints_of, command)
            with group.at("compiling", LONG_WORK):
                chunk = job.compiled(state)
            group.ready()
        elif command["do"] == "chunk":
            count = jnp.int32(command["count"])
            state = group.run(chunk, state, job.floats, count, *more)[0]  # type: ignore[arg-type]
        else:
            group.gathered(state)
    return Result(state, {}, path, command["code"])


def restored(
    group: Group, job: Job, checkpoints_of: Callable[[Path], Checkpoints], command: dict[str, Any]
) -> Any:
    """Create or read the state with which process 0 starts, and copy it to the devices.

    Args:
        group: group of processes.
        job: the job that starts.
        checkpoints_of: function, folder of a run -> its checkpoints.
        command: command of process 0, with its folder and the update that it restored.
    """
    update = command["update"]
    with group.at("creating its initial state", LONG_WORK):
        if update:
            state = checkpoints_of(Path(command["path"])).restore(job.shapes, update)[1]
        else:
            state = job.init()
        group.same_state(update, state)
        return job.placed(state)
