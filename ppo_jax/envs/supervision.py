"""What is known of a run's simulators while they work: the call under way, and what failed."""

import contextlib
import contextvars
import dataclasses
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

# Seconds that a call may go on after a signal asked the run to end.
GRACE = 10.0
# A step or a reset that takes longer than this many seconds is taken for one that hangs. Long
# enough for a simulator that loads a scene or compiles its shaders when it is first reset.
TIMEOUT = 600.0
MAKING = "while it is made"
# Seconds between two looks at whether a call hangs.
LOOK = 0.1
# Seconds that the first environment may take to be made or looked at; None: for ever. Such a call
# cannot be ended without the process, so that only commands and `--env-timeout` set a limit.
_limit: contextvars.ContextVar[float | None] = contextvars.ContextVar("limit", default=None)


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
        count: number of copies of which it is one.
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
    count: int = 1
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

    @contextlib.contextmanager
    def calls(self, name: str, doing: str) -> Iterator[None]:
        """A call of all environments at once in this process is under way during the block."""
        self.name, self.index, self.doing = name, None, doing
        self.call = time.monotonic()
        try:
            yield
        finally:
            self.call = None

    def calls_one_of(self, name: str, count: int, doing: str) -> None:
        """The calls that follow are of copies, one of which `index` names."""
        self.name, self.count, self.doing = name, count, doing

    def stuck(self) -> str | None:
        """What is said of a call under way in this process that hangs; None: none does."""
        began = self.call
        if began is None or time.monotonic() < self.deadline(began, self.doing == MAKING):
            return None
        place = "" if self.index is None else f", index {self.index} of {self.count}"
        alone = (
            "; it runs in this process and cannot be replaced, as with --env-args backend=async"
            if self.restarts
            else ""
        )
        said = self.hung(began, self.doing == MAKING)
        return f"environment {self.name}{place}, {self.doing}: {said}{alone}"

    def deadline(self, began: float, making: bool = False) -> float:
        """When a call that began then is taken for one that hangs."""
        end = began + (max(self.timeout, TIMEOUT) if making else self.timeout)
        return end if self.hurry is None else min(end, max(began, self.hurry) + GRACE)

    def hung(self, began: float, making: bool = False) -> str:
        """What is said of a call that began then and passed its deadline."""
        if self.hurry is not None and time.monotonic() - began < self.timeout:
            return f"does not answer, {GRACE:g} s after the signal"
        limit = max(self.timeout, TIMEOUT) if making else self.timeout
        return f"does not answer within {limit:g} s (--env-timeout)"


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Limit each `answers` within a block.

    Args:
        seconds: None: as before.
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
    """End the process with exit code 2 if a block, a call of an environment before any run, takes
    longer than the limit; without one, there is no watch.

    Args:
        name: of the environment, for the message.
        doing: "while it was made", for the message.
        cure: what to do, for the message.
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
    """End the process with exit code 2 and one line as soon as a block hangs.

    Args:
        stuck: () -> the line; None: it does not hang.
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
    """Call a function again and again, in a thread, while a block runs.

    Args:
        look: () -> None.
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
