"""Two threads in each process, which end it if another process is lost or if it hangs itself.

JAX's own service detects a process that has died, but not one that hangs in Python, and it aborts
the other processes with a stack dump. Here every process publishes a counter; process 0 reads the
counters of all processes, and the others read that of process 0. A counter that does not change for
longer than the heartbeat belongs to a process that is dead or frozen. A process that does not
complete its own work in time reports that itself. One thread communicates with the service and may
block; the other only compares times.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ppo_jax.runs import terminal
from ppo_jax.runs.cluster.board import Board
from ppo_jax.runs.signals import Signals

# Compiling and evaluating have no short limit; a process that dies meanwhile is detected.
LONG_WORK = 1800.0
# In a program of all processes, those that only wait are allowed a little more time than the one
# that delays them, so that this one reports the problem first.
PATIENCE = 1.2
# Module in which JAX calls Python functions from a compiled program.
CALLBACKS = str(Path("jax", "_src", "callback.py"))
# Longest time in seconds that process 0 stays at the end, so that the others can read the reason.
LINGER = 3.0


class Work(NamedTuple):
    """The current activity of the main thread.

    Attributes:
        what: description of the activity.
        since: monotonic time at which it began.
        limit: longest allowed time in seconds.
        shared: whether it is a program in which all processes take part.
    """

    what: str
    since: float
    limit: float
    shared: bool = False


class Watch:
    """Supervises this process and the others.

    Args:
        board: messages of all processes.
        rank: number of this process.
        size: number of processes.
        heartbeat: seconds without a sign of life after which a process is considered lost.
        coordinator: (host, port) at which process 0 listens.
    """

    def __init__(
        self,
        board: Board,
        rank: int,
        size: int,
        heartbeat: float,
        *,
        coordinator: tuple[str, int] | None = None,
    ) -> None:
        self.coordinator = coordinator
        self.board, self.rank, self.size, self.heartbeat = board, rank, size, heartbeat
        self.signals: Signals | None = None
        # What has been saved and how to continue, for the last message of a process.
        self.advice: Callable[[], str] = str
        # Imports, environments and trackers have no short limit either.
        self._work = Work("starting or ending", time.monotonic(), LONG_WORK)
        self._answered = time.monotonic()
        self._seen: dict[int, tuple[str, float]] = {}
        self._tick = min(0.5, heartbeat / 8)
        self._closing, self._ending = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._talk, self._look)]

    def start(self) -> None:
        """Start the threads."""
        _on_abort(self)
        now = time.monotonic()
        self._seen = dict.fromkeys(self._others, ("", now))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads, because the command ends without an error."""
        self._closing.set()
        abort_with(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=2 * self._tick)
        faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def at(self, what: str, limit: float | None = None, *, shared: bool = False) -> Iterator[None]:
        """Describe the activity of the main thread within a block.

        Args:
            what: description that completes "process 1 has been ...".
            limit: longest allowed time in seconds; None for the heartbeat.
            shared: whether it is a program in which all processes take part.
        """
        before = self._work
        limit = self.heartbeat if limit is None else limit
        self._work = Work(what, time.monotonic(), limit, shared)
        try:
            yield
        finally:
            self._work = before._replace(since=time.monotonic())

    def end(self, text: str, code: int, *, shown: bool = True) -> NoReturn:
        """End all processes, this one last.

        Args:
            text: reason in one line.
            code: exit code of all processes.
            shown: whether to print the reason in this process.
        """
        with self._ending:  # a second thread waits here until the process ends
            said = json.dumps({"text": text, "code": code, "rank": self.rank})
            self._say(f"end/{self.rank}", said)
            self._leave(text if shown else "", code)

    def _leave(self, text: str, code: int) -> NoReturn:
        """End this process; process 0 first waits until the others have read the reason."""
        until = time.monotonic() + min(LINGER, self.heartbeat / 4)
        if self.rank:
            self._say(f"left/{self.rank}", "")
        else:
            _briefly(lambda: self._wait_for_others(until))
        if text:
            self._print(text)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)

    def _say(self, name: str, text: str) -> None:
        """Publish a text, if the service still responds."""
        if time.monotonic() - self._answered < self.heartbeat / 2:
            _briefly(lambda: self.board.put(name, text), 1.0)

    def _wait_for_others(self, until: float) -> None:
        while time.monotonic() < until and len(self.board.all("left")) < self.size - 1:
            time.sleep(0.05)

    def _print(self, text: str) -> None:
        advice = ""
        with contextlib.suppress(Exception):
            advice = self.advice()
        terminal.show_cursor()
        line = f"error: {text}{f'; {advice}' if advice else ''}\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode(errors="replace"))

    @property
    def _others(self) -> list[int]:
        """The processes whose counters this process reads."""
        return list(range(1, self.size)) if self.rank == 0 else [0]

    def _talk(self) -> None:
        """The thread that communicates with the service."""
        beats = 0
        while not self._closing.wait(self._tick):
            beats += 1
            try:
                self._exchange(str(beats))
            except Exception:  # the service is gone or does not respond: `wrong` detects that
                if self._closing.is_set():
                    return
                continue
            self._answered = time.monotonic()

    def _exchange(self, beat: str) -> None:
        board, signals = self.board, self.signals
        # Processes other than process 0 need not read the counters of all.
        written, read = ("lead", "alive") if self.rank == 0 else ("alive", "lead")
        board.put(f"{written}/{self.rank}", beat)
        if signals is not None and signals.received and self.rank:
            board.put(f"stop/{self.rank}", str(signals.received))
        ends = board.all("end")
        if ends and not self._closing.is_set():
            found = json.loads(ends[min(ends, key=int)])
            with self._ending:
                text, rank = found["text"], found["rank"]
                text = text if not text or text.startswith("process") else f"process {rank}: {text}"
                self._leave(text, found["code"])
        now, alive = time.monotonic(), board.all(read)
        for rank in self._others:
            number = alive.get(str(rank), "")
            if number != self._seen[rank][0]:
                self._seen[rank] = (number, now)
        if self.rank == 0 and signals is not None:
            for number in board.all("stop").values():
                signals.note(int(number))

    def _look(self) -> None:
        """The thread that compares times; it never blocks."""
        while not self._closing.wait(self._tick):
            # Ends the process if a hanging call prevents even this thread from running.
            faulthandler.dump_traceback_later(1.5 * self.heartbeat, exit=True, file=2)
            if self.signals is not None:
                self.signals.look()
            wrong = self.wrong(time.monotonic())
            if wrong:
                self.end(wrong, 1)

    def wrong(self, now: float) -> str:
        """A description of the problem at a given time, in one line; "" if there is none.

        Args:
            now: monotonic time.
        """
        limit, work = self.heartbeat, self._work
        silent = now - self._answered
        lost = {r: now - since for r, (_, since) in self._seen.items() if now - since > limit}
        if silent > limit and self.rank:
            return f"process 0 has not responded for {silent:.0f} s: it is dead, frozen or cut off"
        if lost:
            names = ", ".join(map(str, sorted(lost)[:8]))
            plural = "es" if len(lost) > 1 else ""
            more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
            verb = "have" if len(lost) > 1 else "has"
            return (
                f"process{plural} {names}{more} {verb} shown no sign of life for "
                f"{max(lost.values()):.0f} s: dead, frozen or cut off"
            )
        return self._slow(work, now - work.since)

    def aborted(self) -> str:
        """The reason why JAX aborts this process, in one line."""
        if self.rank and self.coordinator is not None:
            try:
                socket.create_connection(self.coordinator, timeout=1).close()
            except OSError:
                return "process 0 has ended"
        return (
            f"process {self.rank} of {self.size} was ended by JAX: another process has ended, or "
            "two processes have the same number"
        )

    def _slow(self, work: Work, took: float) -> str:
        """A description of work that exceeds its time limit; "" if there is none."""
        if took <= work.limit:
            return ""
        allowed = f"{took:.0f} s, longer than the {work.limit:.0f} s allowed"
        where = function_called() if work.shared else ""
        if where:
            return (
                f"process {self.rank} has been in a Python function that its program calls "
                f"({where}) for {allowed}: it hangs, or --heartbeat is too short"
            )
        if not work.shared:
            return (
                f"process {self.rank} has been {work.what} for {allowed}: it hangs, or "
                "--heartbeat is too short"
            )
        if took <= PATIENCE * work.limit:
            return ""
        return (
            f"process {self.rank} has waited for the others {work.what} for {allowed}: one of "
            "them hangs, or --heartbeat is too short"
        )


def function_called() -> str:
    """The current line of a Python function that a compiled program is calling, as "file, line 3";
    "" if there is none."""
    for inner in sys._current_frames().values():
        frame = inner
        while (outer := frame.f_back) is not None:
            if outer.f_code.co_filename.endswith(CALLBACKS):
                return f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
            frame = outer
    return ""


def _briefly(call: Callable[[], Any], seconds: float = LINGER + 1) -> None:
    """Make a call that may hang or fail, and wait for it for a limited time."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)


_kept: list[Any] = []  # functions called from C must not be garbage-collected


def _on_abort(watch: Watch) -> None:
    """End the process with a message and exit code 1 if JAX's service aborts it.

    Without process 0 there is no service, and its client aborts the process immediately (SIGABRT,
    which cannot be caught as an exception); only a signal handler in C is called.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        watch._print(watch.aborted())
        os._exit(1)

    abort_with(handler)


def abort_with(handler: Any) -> None:
    """Install a C function as the handler of SIGABRT, if possible.

    Args:
        handler: ctypes function (number) -> None; None for the system's default.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
        _kept.append(handler)
