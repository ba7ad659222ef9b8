"""What came of many tries of one kind of fault."""

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
    """The outcomes of one case.

    Attributes:
        case: what was done.
        survived: the numbers are those of a run without the fault.
        refused: an error of one line, or a warning, that names what is wrong.
        wrong: other numbers, and no message.
        traceback: an error that is not one of the documented ones, or no answer in time.
        seconds: wall-clock time.
        skipped: why nothing was tried.
        note: a number that belongs to the case.
        examples: of what was wrong, for people.
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
        """The number of outcomes that there must be none of."""
        return self.wrong + self.traceback

    def count(self, outcome: str, example: str = "") -> None:
        """One more try.

        Args:
            outcome: survived, refused, wrong or traceback.
            example: what happened, kept where it must not.
        """
        setattr(self, outcome, getattr(self, outcome) + 1)
        if outcome in ("wrong", "traceback") and len(self.examples) < EXAMPLES:
            self.examples.append(f"{self.case}: {outcome}: {example}")

    def done(self) -> "Tally":
        """The same, with its time."""
        self.seconds = time.monotonic() - self.began
        return self

    def row(self) -> dict[str, Any]:
        """Its line of the table."""
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
    """The same letters for the same numbers, bit for bit.

    Args:
        value: arrays, numbers and texts in dictionaries, lists and pytrees.
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
    """JSON of what may hold anything."""
    return json.dumps(value, sort_keys=True, default=str)
