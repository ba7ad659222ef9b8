"""Looking into a compiled training step: `see` hands numbers to a recorder on the host.

Without a recorder, which is how everything is compiled but the program of `--debug-nans`, `see`
does nothing and leaves nothing in the program.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ppo_jax import parallel

# (stage, names -> arrays on the host)
Recorder = Callable[[str, dict[str, Any]], None]
_RECORDER = contextvars.ContextVar[Recorder | None]("recorder", default=None)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """What is traced in here tells the recorder all that it sees, in order, when it runs."""
    token = _RECORDER.set(recorder)
    try:
        yield
    finally:
        _RECORDER.reset(token)


def active() -> bool:
    """Whether a program that is traced now has a recorder."""
    return _RECORDER.get() is not None


def see(stage: str, **trees: Any) -> None:
    """Hand numbers to the recorder, if there is one.

    Args:
        stage: what the program does at this point.
        **trees: of arrays, in the order in which they come about; of all parts of the environments,
            where they are in several.
    """
    recorder = _RECORDER.get()
    if recorder is not None:
        trees = parallel.together(trees, axis=1 if stage == "estimate" else 0)
        jax.debug.callback(functools.partial(recorder, stage), trees, ordered=True)
