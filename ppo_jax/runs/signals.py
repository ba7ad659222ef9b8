"""SIGINT and SIGTERM as a flag that the loop looks at between chunks."""

import os
import signal
import threading
from types import FrameType

from ppo_jax.runs import terminal


class Signals:
    """The first signal asks for an orderly end; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "Signals":
        # Python lets only the main thread handle signals: a run in another one is not asked to end.
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._previous = {s: signal.signal(s, self._handle) for s in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            terminal.show_cursor()
            os._exit(128 + number)
        self.received = number
