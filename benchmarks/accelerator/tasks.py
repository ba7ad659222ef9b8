"""What a measurement is, and the names of the columns that it fills."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

Measured = dict[str, Any]

FIELDS = (
    "started", "device", "section", "task", "value", "unit", "low", "high", "passed",
    "env_steps", "seeds", "threshold", "share_reaching", "compile_seconds", "measured_seconds",
    "program_mb", "peak_mb", "host_transfers", "precision", "tflops_per_second", "of_matmul",
    "gb_per_second", "of_bandwidth", "generation_share", "share", "ratio", "why", "note",
    "versions", "cores",
)  # fmt: skip
KEY = ("device", "section", "task")


class Context(NamedTuple):
    """What a task may use.

    Attributes:
        smoke: whether sizes are tiny, to see that the command works.
        seconds: wall-clock time that the task may take.
        ceilings: the device's rates, measured in the same run: TFLOP/s of matrix products as
            "default", "highest" and "bfloat16", GB/s of a copy as "copy". Empty before they are
            measured.
    """

    smoke: bool
    seconds: float
    ceilings: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """One measurement.

    Attributes:
        section: the module that holds it; tasks of one section share a process.
        name: of the row; parts of one task are rows "NAME: PART".
        measure: Context -> one row or several, with columns of FIELDS.
        patience: seconds after which it is given up.
        least: seconds below which it is not begun.
    """

    section: str
    name: str
    measure: Callable[[Context], Measured | list[Measured]]
    patience: float = 60.0
    least: float = 15.0


class NotAvailable(Exception):
    """The task cannot be measured here; the message says why and what to do."""
