"""One batch in several parts: what is computed from all of it, though each part sees only its own.

The environments of a run may be split into D parts, each with random numbers of its own. All parts
run one function, mapped over named axes: by vmap over `PARTS` where one device has several of them,
and by shard_map over `DEVICES` where there are several devices. Inside, the functions below reduce
over all parts; outside of such a map they reduce nothing, and cost nothing.

    L = (1/D) Σ_d L_d,   ∇L = (1/D) Σ_d ∇L_d

where L_d may contain numbers of the whole batch: a mean over the parts is differentiated like one
device's number that all devices read. That is what shard_map gives without its check of varying
values (check_vma=False), and vmap always; with the check, gradients would be summed a second time.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.types import PyTree

DEVICES, PARTS = "ppo_jax.devices", "ppo_jax.parts"


def axes() -> tuple[Hashable, ...]:
    """The named axes that the function being traced is mapped over, the outer one first."""
    return tuple(name for name in (DEVICES, PARTS) if _is_bound(name))


def _is_bound(name: str) -> bool:
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True


def size() -> int:
    """D, the number of parts; 1 for a batch that is in one piece."""
    found = 1
    for name in axes():
        found *= jax.lax.axis_size(name)
    return found


def mean(tree: PyTree) -> PyTree:
    """The mean over the parts, of every leaf."""
    return _over_parts(jax.lax.pmean, tree)


def sum(tree: PyTree) -> PyTree:
    """The sum over the parts, of every leaf."""
    return _over_parts(jax.lax.psum, tree)


def largest(tree: PyTree) -> PyTree:
    """The largest of the parts' numbers, of every leaf."""
    return _over_parts(jax.lax.pmax, tree)


def smallest(tree: PyTree) -> PyTree:
    """The smallest of the parts' numbers, of every leaf."""
    return _over_parts(jax.lax.pmin, tree)


def any_part(flags: jax.Array) -> jax.Array:
    """[...] bool: whether it is so in any part."""
    if not axes():
        return flags
    return largest(flags.astype(jnp.int32)) > 0


def together(tree: PyTree, axis: int) -> PyTree:
    """What all parts have, one part behind the other.

    Args:
        tree: of arrays.
        axis: along which they are joined; of an array with fewer axes it is the last one.
    """
    names = axes()
    if not names:
        return tree

    def joined(x: jax.Array) -> jax.Array:
        x = jnp.atleast_1d(x)
        return jax.lax.all_gather(x, names, axis=min(axis, x.ndim - 1), tiled=True)

    return jax.tree.map(joined, tree)


def own_key(key: jax.Array) -> jax.Array:
    """A key of the part's own, from one that all parts have; the key itself where there is one
    part."""
    return jax.random.fold_in(key, jax.lax.axis_index(axes())) if axes() else key


def _over_parts(reduce: Callable[..., Any], tree: PyTree) -> PyTree:
    names = axes()
    return reduce(tree, names) if names and jax.tree.leaves(tree) else tree


def counted(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics of all parts, from each part's: counts as sums, real numbers as means."""
    counts = {n: x for n, x in metrics.items() if jnp.issubdtype(jnp.result_type(x), jnp.integer)}
    return average(metrics) | sum(counts)


def average(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the whole batch: real numbers as means over the parts, counts as they are.

    What is a mean over all parts already stays what it is.
    """
    real = {n: x for n, x in metrics.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)}
    return {**metrics, **mean(real)}
