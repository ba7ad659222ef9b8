"""Up to a thousand updates as one compiled program.

Nothing inside it knows of progress, logs, checkpoints or signals: the host loops over chunks of at
most a few seconds, and all of that happens in between.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.types import Metrics, PyTree

CHUNK_SECONDS = 0.5
MAX_CHUNK = 1024
Step = Callable[[Any, PyTree, PyTree], tuple[Any, Metrics]]
Chunk = Callable[..., tuple[Any, Metrics]]


def make_chunk(step: Step, rows: int = MAX_CHUNK) -> Chunk:
    """Up to `rows` updates as one program; their number is an argument, so it compiles once.

    Args:
        step: (state, frozen, floats) -> (state, Metrics); one update.
        rows: number of updates whose metrics there is room for.

    Returns:
        (state, floats, count, frozen=()) -> (state, Metrics with leaves [rows], of which the first
        `count` are new)
    """

    def chunk(state: Any, floats: PyTree, count: jax.Array, frozen: PyTree = ()) -> Any:
        # Jitted, it is traced once and not again in the loop.
        update = jax.jit(lambda state: step(state, frozen, floats))
        shapes = jax.eval_shape(update, state)[1]
        empty = jax.tree.map(lambda s: jnp.zeros((rows, *s.shape), s.dtype), shapes)

        def body(k: jax.Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            state, log = carry
            state, metrics = update(state)
            return state, jax.tree.map(lambda kept, x: kept.at[k].set(x), log, metrics)

        return jax.lax.fori_loop(0, count, body, (state, empty))

    return chunk


def compile_chunk(
    step: Step,
    state: Any,
    floats: PyTree,
    frozen: PyTree = (),
    *,
    rows: int = MAX_CHUNK,
    donate: bool = True,
) -> Chunk:
    """The compiled program of `make_chunk`; the state that goes in is used up.

    Args:
        step: as for `make_chunk`.
        state: arrays, or their shapes.
        floats, frozen: what the step takes; `frozen` is an argument of the program if it has
            arrays.
        rows: as for `make_chunk`.
        donate: whether the state that goes in is used up. Kept, it is what is left of a chunk that
            fails half way.
    """
    count = jax.ShapeDtypeStruct((), jnp.int32)
    chunk = jax.jit(make_chunk(step, rows), donate_argnums=0 if donate else ())
    more = (frozen,) if jax.tree.leaves(frozen) else ()
    return chunk.lower(state, floats, count, *more).compile(compiler_options())


def compiler_options() -> dict[str, str | bool]:
    """XLA's options for the training programs of runs and of sweeps.

    On CPUs LLVM's first level of optimisation: what it makes is as fast as at the third (within 2 %
    on CartPole, Pendulum, Breakout and sixteen agents), and compiling takes 5 to 20 % less, the
    first state half.
    """
    level = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {level: "1"}


def next_count(count: int, seconds: float, limit: int = MAX_CHUNK) -> int:
    """The number of updates for CHUNK_SECONDS of work, after `count` of them took `seconds`."""
    return min(limit, max(1, int(CHUNK_SECONDS * count / seconds)))
