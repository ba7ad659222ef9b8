"""SIGINT, SIGTERM and SIGHUP, recorded in a flag that the loop checks between chunks."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType

from ppo_jax.runs import terminal

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Signal handlers: the first signal ends the run cleanly, a second SIGINT at once.

    Attributes:
        received: number of the first signal; None without a signal.
        since: monotonic time at which it arrived.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.since: float | None = None
        # The pipe receives every signal that the handler receives; they are counted separately.
        self._handled, self._interrupts = False, 0

    @property
    def exit_code(self) -> int:
        """128 + the number of the first signal; 0 without a signal."""
        return 128 + self.received if self.received else 0

    def __enter__(self) -> "Signals":
        # Python allows signal handlers in the main thread only: other threads ignore signals.
        self._previous, self._wakeup = {}, None
        if threading.current_thread() is not threading.main_thread():
            return self
        self._main = threading.get_ident()
        # A process that was started with nohup must survive the end of its terminal.
        numbers = [s for s in ENDING if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
        self._previous = {s: signal.signal(s, self._handle) for s in numbers}
        # The pipe also receives signals while the main thread is blocked outside Python.
        self._wakeup = os.pipe()
        for end in self._wakeup:
            os.set_blocking(end, False)
        self._earlier = signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._earlier)
            wakeup, self._wakeup = self._wakeup, None
            for end in wakeup:
                os.close(end)

    def look(self) -> None:
        """Record signals that arrived while the main thread was blocked; for other threads."""
        with contextlib.suppress(OSError, TypeError):
            for number in os.read(self._wakeup[0], 64):  # type: ignore[index]
                if number in self._previous:
                    self.note(number)
                    self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            _end_at_once(signal.SIGINT)

    def note(self, number: int) -> None:
        """Record a signal, for example one that another process of the same run received."""
        if self.received is None:
            self.received, self.since = number, time.monotonic()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._handled and number == signal.SIGINT:
            _end_at_once(number)
        self._handled = True
        self.note(number)


def _end_at_once(number: int) -> None:
    terminal.show_cursor()
    os._exit(128 + number)
