"""Reductions over all shards of a batch that is split over devices or over a vmap axis.

The environments of a run may be split into D shards ("parts"), each with its own PRNG key. All
shards run one function, mapped over named axes: by vmap over `PARTS` where one device has several
shards, and by shard_map over `DEVICES` where there are several devices. Inside such a map, the
functions below reduce over all shards. Outside, they return their argument and take no time.

    L = (1/D) Σ_d L_d,   ∇L = (1/D) Σ_d ∇L_d

L_d may depend on means over the whole batch: such a mean is differentiated like one number on one
device that all devices read. vmap always has these semantics; shard_map has them without its check
of varying values (check_vma=False). With the check, gradients would be summed a second time.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.types import PyTree

DEVICES, PARTS = "ppo_jax.devices", "ppo_jax.parts"


def axes() -> tuple[Hashable, ...]:
    """The named axes over which the traced function is mapped, the outer axis first."""
    return tuple(name for name in (DEVICES, PARTS) if _is_bound(name))


def _is_bound(name: str) -> bool:
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True


def size() -> int:
    """The number D of shards; 1 for a batch that is not split."""
    found = 1
    for name in axes():
        found *= jax.lax.axis_size(name)
    return found


def mean(tree: PyTree) -> PyTree:
    """The mean of every leaf over the shards."""
    return _over_parts(jax.lax.pmean, tree)


def sum(tree: PyTree) -> PyTree:
    """The sum of every leaf over the shards."""
    return _over_parts(jax.lax.psum, tree)


def largest(tree: PyTree) -> PyTree:
    """The elementwise maximum of every leaf over the shards."""
    return _over_parts(jax.lax.pmax, tree)


def smallest(tree: PyTree) -> PyTree:
    """The elementwise minimum of every leaf over the shards."""
    return _over_parts(jax.lax.pmin, tree)


def any_part(flags: jax.Array) -> jax.Array:
    """[...] bool, whether the flag is set in any shard."""
    if not axes():
        return flags
    return largest(flags.astype(jnp.int32)) > 0


def together(tree: PyTree, axis: int) -> PyTree:
    """Concatenate the arrays of all shards.

    Args:
        tree: pytree of arrays.
        axis: axis of the concatenation; an array with fewer axes is joined along its last axis.
    """
    names = axes()
    if not names:
        return tree

    def joined(x: jax.Array) -> jax.Array:
        x = jnp.atleast_1d(x)
        return jax.lax.all_gather(x, names, axis=min(axis, x.ndim - 1), tiled=True)

    return jax.tree.map(joined, tree)


def own_key(key: jax.Array) -> jax.Array:
    """A PRNG key for this shard, derived from the common key; the common key itself if the batch
    is not split."""
    return jax.random.fold_in(key, jax.lax.axis_index(axes())) if axes() else key


def _over_parts(reduce: Callable[..., Any], tree: PyTree) -> PyTree:
    names = axes()
    return reduce(tree, names) if names and jax.tree.leaves(tree) else tree


def counted(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics of all shards: counts (integers) as sums, real numbers as means."""
    counts = {n: x for n, x in metrics.items() if jnp.issubdtype(jnp.result_type(x), jnp.integer)}
    return average(metrics) | sum(counts)


def average(metrics: dict[str, Any]) -> dict[str, Any]:
    """Average real-valued metrics over the shards; counts (integers) are left unchanged.

    A metric that is already a mean over all shards keeps its value.
    """
    real = {n: x for n, x in metrics.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)}
    return {**metrics, **mean(real)}
