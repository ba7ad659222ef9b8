"""Arrays of the same shape as one array: a loop that keeps them writes one row instead of many."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.types import PyTree

# Numbers of 32 bits change their type without changing a bit; bool is 0 or 1.
PACKED = ("bool", "int32", "uint32", "float32")


class Place(NamedTuple):
    """Where a leaf is.

    Attributes:
        array: number of the array that holds it.
        row: its row there; None: it is the whole array.
        ndim: its number of axes.
        dtype: its type.
    """

    array: int
    row: int | None
    ndim: int
    dtype: str


@struct.dataclass
class Packed:
    """What `pack` makes of a tree.

    Attributes:
        arrays: leaves of one shape together, [..., G, *shape] uint32, and those that are alone as
            they were.
        places: of the leaves, static.
        structure: of the tree, static.
    """

    arrays: tuple[jax.Array, ...]
    places: tuple[Place, ...] = struct.field(pytree_node=False)
    structure: jax.tree_util.PyTreeDef = struct.field(pytree_node=False)


def pack(tree: PyTree) -> Packed:
    """Leaves of the same shape as rows of one array, bit for bit.

    Args:
        tree: of arrays; those of other types than bool, int32, uint32 and float32 stay alone.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))
    shapes = [x.shape if str(x.dtype) in PACKED else None for x in leaves]
    arrays: list[jax.Array] = []
    places: dict[int, Place] = {}
    for shape in dict.fromkeys(shapes):
        members = [i for i, other in enumerate(shapes) if other == shape]
        together = shape is not None and len(members) > 1
        for row, i in enumerate(members):
            x, array = leaves[i], len(arrays) if together else len(arrays) + row
            places[i] = Place(array, row if together else None, x.ndim, str(x.dtype))
        parts = [leaves[i] for i in members]
        arrays += [jnp.stack([_bits(x) for x in parts])] if together else parts
    in_order = tuple(places[i] for i in range(len(leaves)))
    return Packed(tuple(arrays), in_order, structure)


def unpack(packed: Packed) -> PyTree:
    """The tree that was packed; what a loop has put in front of the arrays' axes is kept.

    Args:
        packed: of `pack`, its arrays with or without further leading axes.
    """

    def leaf(place: Place) -> jax.Array:
        array = packed.arrays[place.array]
        if place.row is None:
            return array
        x = array[(..., place.row, *(slice(None),) * place.ndim)]
        return x > 0 if place.dtype == "bool" else jax.lax.bitcast_convert_type(x, place.dtype)

    return jax.tree.unflatten(packed.structure, [leaf(place) for place in packed.places])


def _bits(x: jax.Array) -> jax.Array:
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
