"""What is known of a run's simulators while they work: the call under way, and what failed."""

import dataclasses
import math
import time

# Seconds that a call may go on after a signal asked the run to end.
GRACE = 10.0
# A step or a reset that takes longer than this many seconds is taken for one that hangs. Long
# enough for a simulator that loads a scene or compiles its shaders when it is first reset.
TIMEOUT = 600.0
MAKING = "while it is made"


class SimulatorFailed(RuntimeError):
    """An environment of the host raised, ended, hung or returned what it must not: one line."""


@dataclasses.dataclass
class Supervision:
    """Of all environments of a run together, those of its evaluations among them.

    Attributes:
        active: whether a failure is kept here for the run's loop, instead of being raised within
            the compiled program.
        timeout: seconds that a step or a reset of one copy may take; making one may take TIMEOUT.
        restarts: number of copies that may be replaced.
        replaced: number of copies that were.
        failure: what failed, in one line.
        call: when the call under way in this process began; None between calls.
        index: of the copy that is called; None: all at once.
        doing: "step 12", for messages.
        name: of the environment that is called.
        hurry: when a signal asked the run to end; None: not yet.
    """

    active: bool = False
    timeout: float = math.inf
    restarts: int = 0
    replaced: int = 0
    failure: str | None = None
    call: float | None = None
    index: int | None = None
    doing: str = ""
    name: str = ""
    hurry: float | None = None

    def begin(self, timeout: float | None = None, restarts: int = 0) -> None:
        """Supervise a run.

        Args:
            timeout: seconds; None: TIMEOUT.
            restarts: as above.
        """
        self.active, self.timeout, self.restarts = True, timeout or TIMEOUT, restarts
        self.replaced, self.failure, self.call, self.hurry = 0, None, None, None

    def end(self) -> None:
        """Failures are raised from here on."""
        self.active, self.timeout, self.restarts, self.failure = False, math.inf, 0, None

    def stuck(self) -> str | None:
        """What is said of a call under way in this process that hangs; None: none does."""
        began = self.call
        if began is None or time.monotonic() < self.deadline(began, self.doing == MAKING):
            return None
        place = "" if self.index is None else f", index {self.index}"
        alone = (
            "; it runs in this process and cannot be replaced, as with --env-args backend=async"
            if self.restarts
            else ""
        )
        return f"environment {self.name}{place}, {self.doing}: {self.hung(began)}{alone}"

    def deadline(self, began: float, making: bool = False) -> float:
        """When a call that began then is taken for one that hangs."""
        end = began + (max(self.timeout, TIMEOUT) if making else self.timeout)
        return end if self.hurry is None else min(end, max(began, self.hurry) + GRACE)

    def hung(self, began: float) -> str:
        """What is said of a call that began then and passed its deadline."""
        if self.hurry is not None and time.monotonic() - began < self.timeout:
            return f"does not answer, {GRACE:g} s after the signal"
        return f"does not answer within {self.timeout:g} s (--env-timeout)"
