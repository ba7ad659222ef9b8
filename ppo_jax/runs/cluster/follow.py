"""What a process does that does not lead: the programs that process 0 names, in their order."""

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
    """Work on a job until process 0 says that it is done.

    Args:
        group: of processes.
        job: the same as that of process 0.
        checkpoints_of: folder of a run -> its checkpoints.
        signals: of the command; process 0 hears of them.

    Returns:
        Result(the last state, {}, the run's folder, the exit code of process 0).

    Raises:
        RunFailed: a program failed here.
        CheckpointError: the checkpoint that process 0 restored cannot be read here.
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
    """The state that process 0 begins with, made or read by this one, where it is worked on.

    Args:
        group: of processes.
        job: that begins.
        checkpoints_of: as above.
        command: with the update that process 0 restored, and the folder.
    """
    update = command["update"]
    with group.at("making its first state", LONG_WORK):
        if update:
            state = checkpoints_of(Path(command["path"])).restore(job.shapes, update)[1]
        else:
            state = job.init()
        group.same_state(update, state)
        return job.placed(state)
