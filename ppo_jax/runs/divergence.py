"""A run whose numbers went bad: what is said of it."""

import math
import re
import shlex
from typing import Any, NamedTuple

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
# What has a largest size, too.
LIMITED = ("actions", "rewards", "parameters")
GRADIENTS = ("grad_norm", "gradient")


class Bad(NamedTuple):
    """What went bad in an update.

    Attributes:
        name: of the array that comes first in it: the others follow from it.
        value: of a metric, as text; "" for an array.
        more: number of other arrays and metrics.
    """

    name: str
    value: str
    more: int


def culprits(job: Job, found: guard.Found, metrics: dict[str, Any]) -> Bad:
    """The array or metric with a bad number that comes first in an update.

    Args:
        job: whose metrics may be NaN.
        found: by the guard.
        metrics: name -> number, of the update.
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
    """Of which kind an array or metric is, by its name."""
    found = re.match(r"\w+", name)
    return found.group() if found else name


def message(job: Job, what: Bad, update: int, *, saved: str, hint: str) -> str:
    """One line for a person.

    Args:
        job: that was run.
        what: of `culprits`.
        update: number of updates before the bad one.
        saved: what is saved, in words.
        hint: how to see the origin; "" for none.
    """
    step = (update + 1) * job.units_per_update
    # "rewards", "values of the next state"; what has a path is one of several arrays.
    verb = "are" if what.name.split()[0] in KINDS else "is"
    size = f" or beyond {guard.LIMIT:g} in size" if kind(what.name) in LIMITED else ""
    value = f" ({what.value})" if what.value else ""
    more = f", and {what.more} more after that" if what.more else ""
    name = what.name.replace("metrics: ", "the metric ")
    return (
        f"{name} {verb} not finite{size}{value} at update {update + 1} ({UNITS[job.unit]}: "
        f"{step:,}){more}; that update was taken back, {saved}. Usual cause: {job.cause}"
        + (f". {hint}" if hint else "")
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


def how_to_see(job: Job, record: Any) -> str:
    """How to see the origin of a bad number, in a sentence; "" for a run that is in memory.

    From the last good state, where there is one and its updates can be made again; the environments
    of the host are not in it.
    """
    command, path = getattr(record, "resume", ""), record.path
    if path is None:
        return ""
    if not command or not record.saved or not job.pure:
        return "To see its origin: start again with --debug-nans"
    return f"To see its origin: {command} --resume {shlex.quote(str(path))} --debug-nans"
