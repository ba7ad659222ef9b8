"""Error messages for a run in which a number became NaN or infinite."""

import math
import re
import shlex
from typing import Any, NamedTuple

import numpy as np

from ppo_jax import guard
from ppo_jax.runs import replay
from ppo_jax.runs.job import UNITS, Job

# Kinds of arrays, in the order of computation: an invalid number spreads from one to the next.
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
# The kinds whose numbers must also be below `guard.LIMIT` in absolute value.
LIMITED = ("actions", "rewards", "parameters")
GRADIENTS = ("grad_norm", "gradient")


class Bad(NamedTuple):
    """The arrays and metrics of an update that contain an invalid number.

    Attributes:
        name: name of the first such array or metric in the order of computation; it is the likely
            origin of the others.
        value: name and value of a metric as text; "" for an array.
        more: number of further arrays and metrics with invalid numbers.
    """

    name: str
    value: str
    more: int


def bad_values(job: Job, found: guard.Found, metrics: dict[str, Any]) -> Bad:
    """Find the arrays and metrics with invalid numbers, ordered by computation.

    Args:
        job: the job that was run; it lists the metrics that may be NaN.
        found: the result of the guard for this update.
        metrics: the metrics of this update, name -> number.
    """
    flags = np.asarray(found.flags)
    names = [(n, "") for n, bad in zip(found.names, flags, strict=True) if bad]
    for name, x in metrics.items():
        wrong = isinstance(x, float) and not math.isfinite(x)
        if wrong and not name.startswith(job.may_be_nan):
            of_gradient = name.startswith(GRADIENTS)
            names.append(("gradients" if of_gradient else f"metrics: {name}", f"{name} {x}"))
    ordered = sorted(names, key=lambda found: KINDS.index(kind(found[0])))
    first, value = ordered[0] if ordered else ("a number", "")
    return Bad(first, value, max(0, len(ordered) - 1))


def kind(name: str) -> str:
    """The kind of an array or metric (one of KINDS), taken from its name."""
    found = re.match(r"\w+", name)
    return found.group() if found else name


def message(job: Job, what: Bad, update: int, *, saved: str, hint: str) -> str:
    """Compose the error message, one line.

    Args:
        job: the job that was run.
        what: the result of `bad_values`.
        update: number of updates before the invalid one.
        saved: a phrase that describes what has been saved.
        hint: a sentence that describes how to find the origin, or "".
    """
    step = (update + 1) * job.units_per_update
    # Names such as "rewards" or "values of the next state" are plurals; a name with a path refers
    # to one array.
    verb = "are" if what.name.split()[0] in KINDS else "is"
    size = f" or beyond {guard.LIMIT:g} in absolute value" if kind(what.name) in LIMITED else ""
    value = f" ({what.value})" if what.value else ""
    more = f", followed by {what.more} more" if what.more else ""
    name = what.name.replace("metrics: ", "the metric ")
    return (
        f"{name} {verb} not finite{size}{value} at update {update + 1} ({UNITS[job.unit]}: "
        f"{step:,}){more}; that update was undone, {saved}. Usual cause: {job.cause}"
        + (f". {hint}" if hint else "")
    )


def origin(job: Job, state: Any, update: int, recorder: replay.Recorder | None) -> str:
    """Describe where the invalid number arose, by repeating the update where this is possible.

    Args:
        job: the job that was run.
        state: the state before the invalid update.
        update: number of updates in that state.
        recorder: the recorded intermediate values, for a job whose updates cannot be repeated;
            None for other jobs.
    """
    try:
        seen = replay.replay(job, state) if recorder is None else recorder
    except Exception as error:  # must not hide the original failure of the run
        line = str(error).strip().partition("\n")[0]
        return f"the update could not be repeated ({type(error).__name__}: {line})"
    return replay.origin(job, seen, update)


def how_to_see(job: Job, record: Any) -> str:
    """A sentence that describes how to find the origin of an invalid number.

    It is "" for a run that is only in memory. The command resumes from the last saved state if
    there is one and the updates can be repeated. Gymnasium environments are not part of the saved
    state, so that such a run has to start again.
    """
    command, path = getattr(record, "resume", ""), record.path
    if path is None:
        return ""
    if not command or not record.saved or not job.pure:
        return "To find its origin: start again with --debug-nans"
    return f"To find its origin: {command} --resume {shlex.quote(str(path))} --debug-nans"
