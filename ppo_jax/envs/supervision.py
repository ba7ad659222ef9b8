"""Supervision of the simulators of a run: the current call, its time limit, and failures."""

import contextlib
import contextvars
import dataclasses
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

# Seconds that a call may continue after a signal requested the end of the run.
GRACE = 10.0
# Time limit in seconds of a reset or step. It is long enough for a simulator that loads a scene or
# compiles shaders at its first reset.
TIMEOUT = 600.0
MAKING = "while it is made"
# Seconds between two checks whether a call has exceeded its time limit.
LOOK = 0.1
# Time limit in seconds for making and checking the first environment; None for no limit. Only
# commands and `--env-timeout` set it, because stopping such a call ends the process.
_limit: contextvars.ContextVar[float | None] = contextvars.ContextVar("limit", default=None)


class SimulatorFailed(RuntimeError):
    """A host environment raised an error, exited, hung or returned an invalid value."""


@dataclasses.dataclass
class Supervision:
    """The supervision of all environments of a run, including those for evaluation.

    Attributes:
        active: whether a failure is stored for the loop of the run, rather than raised inside the
            compiled program.
        timeout: time limit in seconds for a reset or step of one copy; the limit for making a copy
            is at least TIMEOUT.
        restarts: number of copies that may be replaced.
        replaced: number of copies that have been replaced.
        failure: description of the failure in one line, or None.
        call: start time of the current call in this process; None between calls.
        index: index of the copy that is called; None if all are called at once.
        count: number of copies.
        doing: description of the current call for messages, such as "step 12".
        name: name of the environment that is called.
        ending_since: time at which a signal requested the end of the run, or None.
    """

    active: bool = False
    timeout: float = math.inf
    restarts: int = 0
    replaced: int = 0
    failure: str | None = None
    call: float | None = None
    index: int | None = None
    count: int = 1
    doing: str = ""
    name: str = ""
    ending_since: float | None = None

    def begin(self, timeout: float | None = None, restarts: int = 0) -> None:
        """Start to supervise a run.

        Args:
            timeout: time limit in seconds, or None for TIMEOUT.
            restarts: number of copies that may be replaced.
        """
        self.active, self.timeout, self.restarts = True, timeout or TIMEOUT, restarts
        self.replaced, self.failure, self.call, self.ending_since = 0, None, None, None

    def end(self) -> None:
        """Stop supervision; later failures are raised."""
        self.active, self.timeout, self.restarts, self.failure = False, math.inf, 0, None

    @contextlib.contextmanager
    def calls(self, name: str, doing: str) -> Iterator[None]:
        """Register a call of all environments in this process for the duration of the block."""
        self.name, self.index, self.doing = name, None, doing
        self.call = time.monotonic()
        try:
            yield
        finally:
            self.call = None

    def calls_one_of(self, name: str, count: int, doing: str) -> None:
        """Register calls of single copies, whose number `index` holds."""
        self.name, self.count, self.doing = name, count, doing

    def stuck(self) -> str | None:
        """A message if the current call in this process exceeds its time limit, else None."""
        began = self.call
        if began is None or time.monotonic() < self.deadline(began, self.doing == MAKING):
            return None
        place = "" if self.index is None else f", index {self.index} of {self.count}"
        alone = (
            "; it runs in this process and cannot be replaced; use --env-args backend=async"
            if self.restarts
            else ""
        )
        reason = self.hung(began, self.doing == MAKING)
        return f"environment {self.name}{place}, {self.doing}: {reason}{alone}"

    def deadline(self, began: float, making: bool = False) -> float:
        """The time at which a call with this start time exceeds its limit."""
        end = began + (max(self.timeout, TIMEOUT) if making else self.timeout)
        return end if self.ending_since is None else min(end, max(began, self.ending_since) + GRACE)

    def hung(self, began: float, making: bool = False) -> str:
        """The message for a call that exceeded its limit."""
        if self.ending_since is not None and time.monotonic() - began < self.timeout:
            return f"does not answer, {GRACE:g} s after the signal"
        limit = max(self.timeout, TIMEOUT) if making else self.timeout
        return f"does not answer within {limit:g} s (--env-timeout)"


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Set the time limit of each `answers` within a block.

    Args:
        seconds: time limit, or None to leave it unchanged.
    """
    if seconds is None:
        yield
        return
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)


@contextlib.contextmanager
def answers(name: str, doing: str, cure: str = "") -> Iterator[None]:
    """End the process with exit code 2 if a block, which calls an environment before a run, takes
    longer than the limit. Without a limit, nothing is checked.

    Args:
        name: name of the environment, for the message.
        doing: description of the call, such as "while it was made", for the message.
        cure: advice for the message.
    """
    limit = _limit.get()
    if limit is None:
        yield
        return
    text = f"environment {name} did not answer within {limit:g} s {doing}{cure}"
    deadline = time.monotonic() + limit
    with ended_if(lambda: text if time.monotonic() > deadline else None):
        yield


@contextlib.contextmanager
def ended_if(stuck: Callable[[], str | None]) -> Iterator[None]:
    """End the process with exit code 2 and an error message as soon as a block hangs.

    Args:
        stuck: function that returns the message, or None while the block does not hang.
    """

    def look() -> None:
        reason = stuck()
        if reason is not None:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"error: {reason}\n")
                sys.stderr.flush()
            os._exit(2)

    with repeated(look):
        yield


@contextlib.contextmanager
def repeated(look: Callable[[], None]) -> Iterator[None]:
    """Call a function repeatedly in a thread while a block runs.

    Args:
        look: function without arguments.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(LOOK):
            look()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
