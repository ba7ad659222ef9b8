"""Counts of the outcomes of one kind of fault."""

import dataclasses
import hashlib
import json
import time
from typing import Any

import jax
import numpy as np

EXAMPLES = 20


@dataclasses.dataclass
class Tally:
    """The outcomes of one kind of fault.

    Attributes:
        case: description of the fault.
        survived: number of faults after which all results are those of a run without faults.
        refused: number of faults that were reported by a one-line error or a warning.
        wrong: number of faults after which results differ without a message.
        traceback: number of faults that caused an undocumented error or a timeout.
        seconds: wall-clock time of the test in seconds.
        skipped: reason why the test was not run; "" if it was run.
        note: additional results of the test.
        examples: descriptions of wrong results and tracebacks.
    """

    case: str
    survived: int = 0
    refused: int = 0
    wrong: int = 0
    traceback: int = 0
    seconds: float = 0.0
    skipped: str = ""
    note: str = ""
    examples: list[str] = dataclasses.field(default_factory=list)
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def tries(self) -> int:
        """The number of faults."""
        return self.survived + self.refused + self.wrong + self.traceback

    @property
    def bad(self) -> int:
        """The number of wrong results and tracebacks, which must be 0."""
        return self.wrong + self.traceback

    def count(self, outcome: str, example: str = "") -> None:
        """Count one fault.

        Args:
            outcome: name of the outcome, survived, refused, wrong or traceback.
            example: description of the outcome, which is kept for wrong results and tracebacks.
        """
        setattr(self, outcome, getattr(self, outcome) + 1)
        if outcome in ("wrong", "traceback") and len(self.examples) < EXAMPLES:
            self.examples.append(f"{self.case}: {outcome}: {example}")

    def done(self) -> "Tally":
        """Store the time of the test; returns this object."""
        self.seconds = time.monotonic() - self.began
        return self

    def row(self) -> dict[str, Any]:
        """The row of the table."""
        return {
            "case": self.case,
            "tries": self.tries,
            "survived": self.survived,
            "refused by name": self.refused,
            "silently wrong": self.wrong,
            "traceback": self.traceback,
            "seconds": round(self.seconds),
            "note": self.skipped or self.note,
        }


def digest(value: Any) -> str:
    """A SHA-256 digest, which is the same for values that are equal bit for bit.

    Args:
        value: pytree of arrays, numbers and strings.
    """
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=lambda x: x is None):
        found.update(jax.tree_util.keystr(path).encode())
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, np.ndarray | np.generic | jax.Array):
            array = np.asarray(leaf)
            found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            found.update(f"{type(leaf).__name__}{leaf!r}".encode())
    return found.hexdigest()


def text_of(value: Any) -> str:
    """A value as JSON; objects of other types are converted to strings."""
    return json.dumps(value, sort_keys=True, default=str)
