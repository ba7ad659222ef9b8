"""Observing a compiled training step: `see` sends numbers to a recorder on the host.

Only the program of `--debug-nans` is compiled with a recorder. Without one, `see` does nothing and
adds nothing to the program.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ppo_jax import parallel

# Function (stage, dictionary of arrays on the host).
Recorder = Callable[[str, dict[str, Any]], None]
_RECORDER = contextvars.ContextVar[Recorder | None]("recorder", default=None)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Programs traced in this context send their numbers to the recorder, in order of execution."""
    token = _RECORDER.set(recorder)
    try:
        yield
    finally:
        _RECORDER.reset(token)


def active() -> bool:
    """Whether a program that is traced now has a recorder."""
    return _RECORDER.get() is not None


def see(stage: str, **trees: Any) -> None:
    """Send numbers to the recorder, if there is one.

    Args:
        stage: name of the program's current stage.
        **trees: pytrees of arrays in the order of their computation. If the environments are split
            into shards, the arrays of all shards are sent.
    """
    recorder = _RECORDER.get()
    if recorder is not None:
        trees = parallel.together(trees, axis=1 if stage == "estimate" else 0)
        jax.debug.callback(functools.partial(recorder, stage), trees, ordered=True)
