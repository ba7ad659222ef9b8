"""What a compiled program failed with, in one line.

An environment or a reward in JAX may call Python (`jax.pure_callback`, `jax.io_callback`). What
that raises comes back as the text of a traceback, which has dozens of lines of JAX's own.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

# How the error of a program begins whose Python function raised.
CALLBACK = "error calling callback"
FRAME = re.compile(r'^ +File "(?P<file>.*)", line (?P<line>\d+)')


class CheckpointError(RuntimeError):
    """Nothing can be restored: where, why, and what to do."""


class RunFailed(RuntimeError):
    """A run failed while it ran: why, and what is saved."""


def is_callback(error: BaseException) -> bool:
    """Whether a function in Python, called by a compiled program, raised it."""
    return CALLBACK in str(error)


def one_line(error: BaseException) -> str:
    """What failed; of a function in Python, what it raised and where.

    Args:
        error: JaxRuntimeError.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if not is_callback(error):
        return f"the program failed: {lines[0].strip()}"
    frames = [match for line in lines if (match := FRAME.match(line))]
    last = max((k for k, line in enumerate(lines) if FRAME.match(line)), default=0)
    # The line of the source may follow, indented.
    rest = [line.strip() for line in lines[last + 1 :] if not line.startswith("    ")]
    raised = " ".join(line for line in rest if line).rstrip(":") or "an error"
    where = ""
    if frames:
        where = f" ({Path(frames[-1]['file']).name}, line {frames[-1]['line']})"
    return f"a function that the program calls in Python raised {raised}{where}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """JAX prints no traceback of a function that fails while a block runs: `one_line` says it."""
    logger = logging.getLogger("jax._src.callback")
    logger.addFilter(_dropped)
    try:
        yield
    finally:
        logger.removeFilter(_dropped)


def _dropped(record: logging.LogRecord) -> bool:
    return "callback failed" not in record.getMessage()
