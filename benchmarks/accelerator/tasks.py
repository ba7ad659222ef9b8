"""The record of a measurement, and the columns of its rows."""

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
    """The conditions of a measurement.

    Attributes:
        smoke: whether sizes are tiny, for a test of the command.
        seconds: maximum wall-clock time of the task in seconds.
        ceilings: peak rates of the device, measured in the same run: TFLOP/s of matrix products as
            "default", "highest" and "bfloat16", GB/s of a copy as "copy"; empty before they are
            measured.
    """

    smoke: bool
    seconds: float
    ceilings: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """One measurement.

    Attributes:
        section: name of the module that defines the task; tasks of one section share a process.
        name: name of the task in the CSV; parts of one task are rows "NAME: PART".
        measure: function Context -> one row or a list of rows, with columns of FIELDS.
        patience: seconds after which the task is stopped.
        least: minimum number of remaining seconds for starting the task.
    """

    section: str
    name: str
    measure: Callable[[Context], Measured | list[Measured]]
    patience: float = 60.0
    least: float = 15.0


class NotAvailable(Exception):
    """The task cannot be measured on this machine; the message names the reason and a remedy."""
