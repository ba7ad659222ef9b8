"""SIGINT, SIGTERM and SIGHUP as a flag that the loop looks at between chunks."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType

from ppo_jax.runs import terminal

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """The first signal asks for an orderly end; a second SIGINT ends the process at once.

    Attributes:
        received: the number of the first signal; None: none came.
        since: when it came, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.since: float | None = None
        # The pipe says of each signal what the handler says: both count for themselves.
        self._handled, self._interrupts = False, 0

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal that came, whenever it came; else 0."""
        return 128 + self.received if self.received else 0

    def __enter__(self) -> "Signals":
        # Python lets only the main thread handle signals: a run in another one is not asked to end.
        self._previous, self._wakeup = {}, None
        if threading.current_thread() is not threading.main_thread():
            return self
        self._main = threading.get_ident()
        # A process that was started by nohup outlives its terminal.
        numbers = [s for s in ENDING if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
        self._previous = {s: signal.signal(s, self._handle) for s in numbers}
        # Signals come through this pipe, too, while the main thread is held up outside of Python.
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
        """Notice what came while the main thread was held up; for other threads."""
        with contextlib.suppress(OSError, TypeError):
            for number in os.read(self._wakeup[0], 64):  # type: ignore[index]
                if number in self._previous:
                    self.note(number)
                    self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            _end_at_once(signal.SIGINT)

    def note(self, number: int) -> None:
        """Take a signal for received; for those that came to another process of the same run."""
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
