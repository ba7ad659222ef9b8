"""Up to a thousand updates as one compiled program.

Nothing inside it knows of progress, logs, checkpoints or signals: the host loops over chunks of at
most a few seconds, and all of that happens in between. What happens inside is the guard: an update
that leaves a number which is not finite is taken back.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ppo_jax import backend, guard, packed
from ppo_jax.runs.devices import Layout
from ppo_jax.types import Metrics, PyTree

CHUNK_SECONDS = 0.5
MAX_CHUNK = 1024
# (state, frozen, floats) -> (state, Metrics), or (state, Metrics, guard.Found).
Step = Callable[[Any, PyTree, PyTree], Any]
Chunk = Callable[..., tuple[Any, Metrics, "Outcome"]]


class Outcome(NamedTuple):
    """How a chunk ended.

    Attributes:
        made: [] int32, the number of updates that are in the state.
        bad: [] bool: the update after them left a number that is not good, and was taken back. Its
            metrics are in the row after theirs.
        found: by the guard in the last update that was tried.
    """

    made: jax.Array
    bad: jax.Array
    found: guard.Found


def make_chunk(
    step: Step, rows: int = MAX_CHUNK, *, may_be_nan: tuple[str, ...] = (), stop: bool = True
) -> Chunk:
    """Up to `rows` updates as one program; their number is an argument, so it compiles once.

    Args:
        step: (state, frozen, floats) -> (state, Metrics), and a guard.Found if it looks at its
            numbers itself; one update. Its metrics are always looked at.
        rows: number of updates whose metrics there is room for.
        may_be_nan: beginnings of the names of metrics that may be NaN.
        stop: whether a bad update ends the chunk. If not, as where one of many agents is bad, the
            state stays as it was before it, and the metrics from it on have no value.

    Returns:
        (state, floats, count, frozen=()) -> (state, Metrics with leaves [rows], of which the first
        `Outcome.made` are new and NaN is hidden, Outcome)
    """

    few = backend.launch_bound()

    def chunk(state: Any, floats: PyTree, count: jax.Array, frozen: PyTree = ()) -> Any:
        # Jitted, it is traced once and not again in the loop.
        update = jax.jit(lambda state: _guarded(step(state, frozen, floats), may_be_nan))
        shapes = jax.eval_shape(update, state)
        row = jax.eval_shape(packed.pack, shapes[1]) if few else shapes[1]
        empty = jax.tree.map(lambda s: jnp.zeros((rows, *s.shape), s.dtype), row)
        none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[2])
        made = jnp.zeros((), jnp.int32)

        def goes_on(carry: Any) -> jax.Array:
            k, _, _, outcome = carry
            return (k < count) & ~outcome.bad if stop else k < count

        def body(carry: Any) -> Any:
            k, state, log, outcome = carry
            new, metrics, found = update(state)
            bad = outcome.bad | found.bad
            state = jax.tree.map(lambda x, y: jnp.where(bad, x, y), state, new)
            if not stop:
                metrics = jax.tree.map(lambda x: _without_value(bad, x), metrics)
            row = packed.pack(metrics) if few else metrics
            log = jax.tree.map(lambda kept, x: kept.at[k].set(x), log, row)
            return k + 1, state, log, Outcome(outcome.made + ~bad, bad, found)

        start = (made, state, empty, Outcome(made, jnp.zeros((), bool), none))
        state, log, outcome = jax.lax.while_loop(goes_on, body, start)[1:]
        return state, packed.unpack(log) if few else log, outcome

    return chunk


def _guarded(result: Any, may_be_nan: tuple[str, ...]) -> tuple[Any, Metrics, guard.Found]:
    """What a step returns, with what the guard says of its metrics and of the rest."""
    state, metrics, *found = result
    known: guard.Found = found[0] if found else guard.check([])
    real = [
        jnp.all(jnp.isfinite(x))
        for name, x in metrics.items()
        if jnp.issubdtype(jnp.result_type(x), jnp.floating) and not name.startswith(may_be_nan)
    ]
    bad = ~jnp.all(jnp.stack(real)) if real else jnp.zeros((), bool)
    return state, guard.hide(metrics), dataclasses.replace(known, bad=bad | known.bad)


def _without_value(bad: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(bad, guard.absent(x), x) if jnp.issubdtype(x.dtype, jnp.floating) else x


def compile_chunk(
    step: Step,
    state: Any,
    floats: PyTree,
    frozen: PyTree = (),
    *,
    rows: int = MAX_CHUNK,
    may_be_nan: tuple[str, ...] = (),
    donate: bool = True,
    layout: Layout | None = None,
) -> Chunk:
    """The compiled program of `make_chunk`; the state that goes in is used up.

    Args:
        step: as for `make_chunk`.
        state: arrays, or their shapes.
        floats, frozen: what the step takes; `frozen` is an argument of the program if it has
            arrays.
        rows, may_be_nan: as for `make_chunk`.
        donate: whether the state that goes in is used up. Kept, it is what a chunk that fails half
            way leaves.
        layout: how several devices share the state; all else they have in common.
    """
    count = jax.ShapeDtypeStruct((), jnp.int32)
    more = (frozen,) if jax.tree.leaves(frozen) else ()
    made = make_chunk(step, rows, may_be_nan=may_be_nan)
    if layout is not None:
        made = _on_each_device(made, layout, len(more))
    chunk = jax.jit(made, donate_argnums=0 if donate else ())
    return chunk.lower(state, floats, count, *more).compile(compiler_options())


def _on_each_device(chunk: Chunk, layout: Layout, frozen: int) -> Chunk:
    """A chunk whose program every device runs on its own share of the state.

    The check of values that vary over devices is off: it would add up gradients by itself, and
    `ppo_jax.parallel` has done so.
    """
    whole = PartitionSpec()
    return jax.shard_map(
        chunk,
        mesh=layout.mesh,
        in_specs=(layout.specs, whole, whole, *(whole,) * frozen),
        out_specs=(layout.specs, whole, whole),
        check_vma=False,
    )


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
