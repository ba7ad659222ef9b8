"""A run whose numbers went bad: what is said of it."""

import itertools
import math
import re
import shlex
from typing import Any

import numpy as np

from ppo_jax import guard
from ppo_jax.runs import replay
from ppo_jax.runs.job import UNITS, Job

# In the order in which one leads to the next.
KINDS = (
    "observations",
    "actions",
    "values",
    "rewards",
    "statistics",
    "gradients",
    "metrics",
    "parameters",
    "optimiser",
)
GRADIENTS = ("grad_norm", "gradient")


def culprits(job: Job, found: guard.Found, metrics: dict[str, Any]) -> str:
    """The arrays and metrics with a bad number, those that come first in an update first.

    Args:
        job: whose metrics may be NaN.
        found: by the guard.
        metrics: name -> number, of the update.
    """
    names = [n for n, bad in zip(found.names, np.asarray(found.flags), strict=True) if bad]
    for name, x in metrics.items():
        wrong = isinstance(x, float) and not math.isfinite(x)
        if wrong and not name.startswith(job.may_be_nan):
            names.append(f"{'gradients' if name.startswith(GRADIENTS) else 'metrics'}: {name} {x}")
    ordered = sorted(names, key=lambda name: KINDS.index(kind(name)))
    texts = []
    for _, group in itertools.groupby(ordered, kind):
        first, *more = group
        texts.append(first + (f" and {len(more)} more" if more else ""))
    return ", ".join(texts) or "a number"


def kind(name: str) -> str:
    """Of which kind an array or metric is, by its name."""
    found = re.match(r"\w+", name)
    return found.group() if found else name


def message(job: Job, what: str, update: int, *, saved: str, resume: str) -> str:
    """One line for a person.

    Args:
        job: that was run.
        what: of `culprits`.
        update: number of updates before the bad one.
        saved: what is saved, in words.
        resume: the command that names the origin; "" for none.
    """
    step = (update + 1) * job.units_per_update
    finite = re.search(r" -?(nan|inf)\b", what) is not None
    size = "" if finite else f", or beyond {guard.LIMIT:g} in size,"
    hint = f". To see its origin: {resume}" if resume else ""
    return (
        f"{what} is not finite{size} at update {update + 1} ({UNITS[job.unit]}: {step:,}); that "
        f"update was taken back, {saved}. Usual cause: {job.cause}{hint}"
    )


def origin(job: Job, state: Any, update: int, recorder: replay.Recorder | None) -> str:
    """Where the number came from; the update is made again where it can be.

    Args:
        job: that was run.
        state: before the bad update.
        update: number of updates in it.
        recorder: what was seen while the update was made, of a job whose updates cannot be.
    """
    try:
        seen = replay.replay(job, state) if recorder is None else recorder
    except Exception as error:  # the run has failed already; this is not to hide how
        line = str(error).strip().partition("\n")[0]
        return f"the update could not be made again ({type(error).__name__}: {line})"
    return replay.origin(job, seen, update)


def resume_command(job: Job, record: Any) -> str:
    """The command that goes on from the last good state and names the origin."""
    command, path = getattr(record, "resume", ""), record.path
    if not command or path is None or not record.saved or not job.pure:
        return ""
    return f"{command} --resume {shlex.quote(str(path))} --debug-nans"
