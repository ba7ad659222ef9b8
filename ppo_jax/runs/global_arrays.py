"""Global arrays, which are divided among processes: distributing, gathering and reading them."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from ppo_jax.types import PyTree

# Words in the error messages of a collective operation that failed because a process has ended.
_LOST = re.compile(
    "gloo|nccl|mpi|connection|socket|broken pipe|peer|unavailable|heartbeat|timed out|deadline",
    re.IGNORECASE,
)


def is_global(x: Any) -> bool:
    """Whether other processes hold parts of an array."""
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def spread(x: Any, sharding: Sharding) -> jax.Array:
    """Create a global array from an array that every process has, without communication.

    Args:
        x: [...], an array with the same content in all processes.
        sharding: sharding over the devices of all processes.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        spec = getattr(sharding, "spec", None)
        if not isinstance(sharding, NamedSharding) or spec is None:
            raise TypeError(f"keys take a NamedSharding, not {type(sharding).__name__}")
        data = spread(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def gather(tree: PyTree) -> PyTree:
    """Gather a tree on the first device of each process; all processes must call this.

    Args:
        tree: pytree of arrays; global arrays must have the same mesh.
    """
    leaves, structure = jax.tree.flatten(tree)
    parted = [k for k, x in enumerate(leaves) if is_global(x) and not x.is_fully_replicated]
    if parted:
        copied = _whole(leaves[parted[0]].sharding.mesh)([leaves[k] for k in parted])
        for k, x in zip(parted, jax.block_until_ready(copied), strict=True):
            leaves[k] = x
    return jax.tree.unflatten(structure, [_own(x) for x in leaves])


@functools.lru_cache(maxsize=4)
def _whole(mesh: Mesh) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """A function that copies divided arrays to all devices; cached, so that it compiles once."""
    return jax.jit(lambda xs: xs, out_shardings=NamedSharding(mesh, PartitionSpec()))


def own(tree: PyTree) -> PyTree:
    """The part of a tree that this process holds; replicated arrays are complete.

    Args:
        tree: pytree of arrays; global arrays are divided along their first axis.
    """
    return jax.tree.map(_own, tree)


def _own(x: Any) -> Any:
    if not is_global(x):
        return x
    if x.is_fully_replicated:
        return x.addressable_data(0)
    parts = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    device = x.addressable_shards[0].device
    return jnp.concatenate([jax.device_put(parts[k], device) for k in sorted(parts)])


def lost_peer(error: BaseException) -> bool:
    """Whether a program failed because another process has ended."""
    return bool(_LOST.search(str(error)))
