"""One-line descriptions of errors raised by compiled programs.

An environment or a reward function in JAX may call Python (`jax.pure_callback`,
`jax.io_callback`). JAX reports an exception of such a function as the text of a traceback, with
dozens of lines from JAX itself.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

# Text in the error of a program whose Python callback raised an exception.
CALLBACK = "error calling callback"
FRAME = re.compile(r'^ +File "(?P<file>.*)", line (?P<line>\d+)')


class CheckpointError(RuntimeError):
    """No checkpoint can be restored; the message gives the folder, the reason and a remedy."""


class RunFailed(RuntimeError):
    """A run failed after it had started; the message gives the reason and what has been saved."""


def is_callback(error: BaseException) -> bool:
    """Whether the error was raised by a Python function that a compiled program called."""
    return CALLBACK in str(error)


def one_line(error: BaseException) -> str:
    """Describe the error; for a Python callback, the exception and the line that raised it.

    Args:
        error: an error of a compiled program (JaxRuntimeError).
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if not is_callback(error):
        return f"the program failed: {lines[0].strip()}"
    frames = [match for line in lines if (match := FRAME.match(line))]
    last = max((k for k, line in enumerate(lines) if FRAME.match(line)), default=0)
    # The traceback may also quote the source line, indented.
    rest = [line.strip() for line in lines[last + 1 :] if not line.startswith("    ")]
    raised = " ".join(line for line in rest if line).rstrip(":") or "an error"
    where = ""
    if frames:
        where = f" ({Path(frames[-1]['file']).name}, line {frames[-1]['line']})"
    return f"a Python function called by the program raised {raised}{where}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress JAX's log of callback tracebacks within the block; see `one_line` instead."""
    logger = logging.getLogger("jax._src.callback")
    logger.addFilter(_dropped)
    try:
        yield
    finally:
        logger.removeFilter(_dropped)


def _dropped(record: logging.LogRecord) -> bool:
    return "callback failed" not in record.getMessage()
