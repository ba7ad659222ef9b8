"""Up to a thousand updates as one compiled program.

The program contains no progress display, logging, checkpoints or signal handling: the host runs
chunks of at most a few seconds and does all of that between them. The program does contain the
guard, which undoes an update that leaves a number that is not finite.
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
        made: [] int32, number of updates included in the returned state.
        bad: [] bool, whether the next update left an invalid number and was undone. Its metrics
            follow those of the updates in the state.
        found: the guard's result for the last update that was tried.
    """

    made: jax.Array
    bad: jax.Array
    found: guard.Found


def make_chunk(
    step: Step, rows: int = MAX_CHUNK, *, may_be_nan: tuple[str, ...] = (), stop: bool = True
) -> Chunk:
    """Run up to `rows` updates in one program; their number is an argument: one compilation.

    Args:
        step: one update, (state, frozen, floats) -> (state, Metrics), or with a guard.Found as a
            third result if the step checks its own numbers. Its metrics are always checked.
        rows: largest number of updates, and length of the metrics' arrays.
        may_be_nan: prefixes of the names of metrics that may be NaN.
        stop: whether an invalid update ends the chunk. If False, as for one of many agents, the
            state before that update is kept and all later metrics are marked as absent.

    Returns:
        (state, floats, count, frozen=()) -> (state, Metrics with leaves [rows], Outcome). The first
        `Outcome.made` rows of the metrics are new, and NaN in them is encoded by `guard.hide`.
    """

    few = backend.launch_bound()

    def chunk(state: Any, floats: PyTree, count: jax.Array, frozen: PyTree = ()) -> Any:
        # With jit, the update is traced once and not again inside the loop.
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
    """The result of a step, with the guard's check extended to its metrics."""
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
    """Compile the program of `make_chunk`.

    Args:
        step: one update, as for `make_chunk`.
        state: example arrays of the state, or their shapes.
        floats, frozen: further arguments of the step; `frozen` is an argument of the program if it
            has arrays.
        rows, may_be_nan: arguments of `make_chunk`.
        donate: whether the memory of the input state is reused. If False, the input state is still
            available after a chunk fails.
        layout: the partition of the state over several devices; all other arguments are replicated.
    """
    count = jax.ShapeDtypeStruct((), jnp.int32)
    more = (frozen,) if jax.tree.leaves(frozen) else ()
    made = make_chunk(step, rows, may_be_nan=may_be_nan)
    if layout is not None:
        made = _on_each_device(made, layout, len(more))
    chunk = jax.jit(made, donate_argnums=0 if donate else ())
    return chunk.lower(state, floats, count, *more).compile(compiler_options())


def _on_each_device(chunk: Chunk, layout: Layout, frozen: int) -> Chunk:
    """A chunk that every device runs on its own part of the state.

    JAX's check of values that vary over devices (`check_vma`) is off: with it, JAX would sum
    gradients over the devices, which `ppo_jax.parallel` has already done.
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
    """XLA options for the training programs of runs and sweeps.

    On CPUs, LLVM's optimisation level 1 is used: the programs run as fast as at level 3 and compile
    in less time.
    """
    level = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {level: "1"}


def next_count(count: int, seconds: float, limit: int = MAX_CHUNK) -> int:
    """The number of updates that take CHUNK_SECONDS, if `count` updates took `seconds`."""
    return min(limit, max(1, int(CHUNK_SECONDS * count / seconds)))
