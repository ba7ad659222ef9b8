"""Arrays of equal shape packed into one array, so that a loop writes one row instead of many."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.types import PyTree

# 32-bit types are converted without changing a bit; bool is stored as 0 or 1.
PACKED = ("bool", "int32", "uint32", "float32")


class Place(NamedTuple):
    """The position of a leaf in packed arrays.

    Attributes:
        array: index of the array that contains the leaf.
        row: row of the leaf in that array, or None if the leaf is the whole array.
        ndim: number of axes of the leaf.
        dtype: type of the leaf.
    """

    array: int
    row: int | None
    ndim: int
    dtype: str


@struct.dataclass
class Packed:
    """A pytree packed by `pack`.

    Attributes:
        arrays: leaves of equal shape as one array [..., G, *shape] of uint32, and the other leaves
            unchanged.
        places: positions of the leaves, static.
        structure: structure of the pytree, static.
    """

    arrays: tuple[jax.Array, ...]
    places: tuple[Place, ...] = struct.field(pytree_node=False)
    structure: jax.tree_util.PyTreeDef = struct.field(pytree_node=False)


def pack(tree: PyTree) -> Packed:
    """Pack leaves of equal shape as rows of one array, without changing a bit.

    Args:
        tree: pytree of arrays. Arrays of types other than bool, int32, uint32 and float32 are not
            packed.
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
    """The pytree that was packed. Leading axes that a loop has added to the arrays are kept.

    Args:
        packed: result of `pack`, whose arrays may have additional leading axes.
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
