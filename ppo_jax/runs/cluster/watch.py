"""Two threads in each process that end it when another one is lost, or when it hangs itself.

JAX's own service notices a process that died, but not one that hangs in Python, and what it does
is to abort with a dump of its stack. Here every process writes down a growing number; process 0
reads those of all, and the others read that of process 0. A number that stands still for longer
than the heartbeat is a process that is dead or frozen. A process whose own work stands still says
so itself. One thread talks with the service, and may be held up there; the other only looks at the
clock.
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

# Compiling and evaluating take as long as they take; a process that dies meanwhile is noticed.
LONG_WORK = 1800.0
# Where all processes wait for each other, those that only wait may do so a little longer than the
# one that holds them up, so that this one is the first to say so.
PATIENCE = 1.2
# Where JAX calls a function of Python from a compiled program.
CALLBACKS = str(Path("jax", "_src", "callback.py"))
# Seconds that process 0 stays at the end, at most, so that the others can read why.
LINGER = 3.0


class Work(NamedTuple):
    """What the main thread does.

    Attributes:
        what: in words.
        since: by the monotonic clock.
        limit: seconds that it may take.
        shared: whether it is a program that waits for all other processes.
    """

    what: str
    since: float
    limit: float
    shared: bool = False


class Watch:
    """Looks after this process and the others.

    Args:
        board: of all processes.
        rank: of this process.
        size: number of processes.
        heartbeat: seconds.
        coordinator: (host, port) where process 0 listens.
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
        # What is saved and how to go on, for the line with which a process ends.
        self.advice: Callable[[], str] = str
        # Imports, environments and trackers take as long as they take, too.
        self._work = Work("starting or ending", time.monotonic(), LONG_WORK)
        self._answered = time.monotonic()
        self._seen: dict[int, tuple[str, float]] = {}
        self._tick = min(0.5, heartbeat / 8)
        self._closing, self._ending = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._talk, self._look)]

    def start(self) -> None:
        """Begin to watch."""
        _on_abort(self)
        now = time.monotonic()
        self._seen = dict.fromkeys(self._others, ("", now))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Watch no more; all is well."""
        self._closing.set()
        abort_with(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=2 * self._tick)
        faulthandler.cancel_dump_traceback_later()

    @contextlib.contextmanager
    def at(self, what: str, limit: float | None = None, *, shared: bool = False) -> Iterator[None]:
        """The main thread does something during a block.

        Args:
            what: in words, to follow "has been".
            limit: seconds that it may take; None: the heartbeat.
            shared: whether it is a program that waits for all other processes.
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
            text: why, in a line.
            code: exit code of all.
            shown: whether the line is to be printed here.
        """
        with self._ending:  # whoever comes second waits here, and ends with the first
            said = json.dumps({"text": text, "code": code, "rank": self.rank})
            self._say(f"end/{self.rank}", said)
            self._leave(text if shown else "", code)

    def _leave(self, text: str, code: int) -> NoReturn:
        """End this process; process 0, which the others hear everything from, when they know."""
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
        """Put a text on the board, if that still answers."""
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
        """Those whose numbers this process reads."""
        return list(range(1, self.size)) if self.rank == 0 else [0]

    def _talk(self) -> None:
        """The thread that talks with the service."""
        beats = 0
        while not self._closing.wait(self._tick):
            beats += 1
            try:
                self._exchange(str(beats))
            except Exception:  # the service is gone, or no longer answers: the clock will tell
                if self._closing.is_set():
                    return
                continue
            self._answered = time.monotonic()

    def _exchange(self, beat: str) -> None:
        board, signals = self.board, self.signals
        # The others need not read the numbers of all.
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
        """The thread that looks at the clock; it waits for nobody."""
        while not self._closing.wait(self._tick):
            # Ends the process if a call that hangs keeps even this thread from running.
            faulthandler.dump_traceback_later(1.5 * self.heartbeat, exit=True, file=2)
            if self.signals is not None:
                self.signals.look()
            wrong = self.wrong(time.monotonic())
            if wrong:
                self.end(wrong, 1)

    def wrong(self, now: float) -> str:
        """What is wrong at a time, in a line; "" for nothing.

        Args:
            now: by the monotonic clock.
        """
        limit, work = self.heartbeat, self._work
        silent = now - self._answered
        lost = {r: now - since for r, (_, since) in self._seen.items() if now - since > limit}
        if silent > limit and self.rank:
            return f"process 0 has not answered for {silent:.0f} s: it is dead, frozen or cut off"
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
        """Why JAX aborts this process, in a line."""
        if self.rank and self.coordinator is not None:
            try:
                socket.create_connection(self.coordinator, timeout=1).close()
            except OSError:
                return "process 0 is gone"
        return (
            f"process {self.rank} of {self.size} was ended by JAX: another is gone, or two have "
            "the same number"
        )

    def _slow(self, work: Work, took: float) -> str:
        """What is wrong with work that has taken so many seconds; "" for nothing."""
        if took <= work.limit:
            return ""
        allowed = f"{took:.0f} s, longer than the {work.limit:.0f} s allowed"
        where = function_called() if work.shared else ""
        if where:
            return (
                f"process {self.rank} has been in a function of Python that its program calls "
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
            f"process {self.rank} has waited for the others {work.what} for {allowed}: one of them "
            "hangs, or --heartbeat is too short"
        )


def function_called() -> str:
    """Where a function of Python is that a compiled program calls at this moment: "file, line 3";
    "" if none is called."""
    for inner in sys._current_frames().values():
        frame = inner
        while (outer := frame.f_back) is not None:
            if outer.f_code.co_filename.endswith(CALLBACKS):
                return f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"
            frame = outer
    return ""


def _briefly(call: Callable[[], Any], seconds: float = LINGER + 1) -> None:
    """Call something that may hang or fail, and do not wait for long."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)


_kept: list[Any] = []  # functions that C calls must not be collected


def _on_abort(watch: Watch) -> None:
    """End with a line and code 1 where JAX's service aborts the process.

    Without process 0 there is no service, and its client aborts in the same moment (SIGABRT, which
    is no exception and cannot be caught); only a handler in C is called then.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        watch._print(watch.aborted())
        os._exit(1)

    abort_with(handler)


def abort_with(handler: Any) -> None:
    """Let a C function handle SIGABRT; where that cannot be, it stays as it is.

    Args:
        handler: (number) -> None, of ctypes; None: what the system does.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
        _kept.append(handler)
