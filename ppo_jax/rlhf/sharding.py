"""A decoder on several devices, with batches split over one axis of a mesh and matrices over the
other.

The programs do not change: jit reads the sharding of its arguments, and the compiler adds the
communication. A matrix whose outputs are split by heads or by units of the MLP is followed by one
that sums over them, so that each of attention and MLP communicates once.

The compiler keeps the split of a batch through matrix products, but not through a permutation or a
reshape of its rows: it then computes the whole batch on every device, with the same results. The
rows are therefore split again immediately before each model (`over_devices`).

Source: Shoeybi et al. 2019, Megatron-LM, section 3 (the split of the matrices).
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ppo_jax.types import Params

DATA, MODEL = "data", "model"
SPLIT_OUTPUTS = ("q", "k", "v", "gate", "up", "head")
SPLIT_INPUTS = ("o", "down")


def make_mesh(data: int, model: int) -> Mesh:
    """A mesh of the first data × model devices.

    Args:
        data: number of devices along the axis that the batch is split over.
        model: number of devices along the axis that matrices are split over.

    Raises:
        ValueError: there are fewer devices.
    """
    devices = jax.devices()
    if data * model > len(devices):
        raise ValueError(
            f"a mesh of {data} x {model} needs {data * model} devices; there are {len(devices)}"
        )
    # Auto: the compiler chooses the sharding of intermediate results.
    kinds = (AxisType.Auto, AxisType.Auto)
    chosen = devices[: data * model]
    return jax.make_mesh((data, model), (DATA, MODEL), kinds, devices=chosen)


def data_size(mesh: Mesh | None) -> int:
    """Number of devices that the rows of a batch are split over; 1 without a mesh."""
    return 1 if mesh is None else mesh.shape[DATA]


def spec(path: tuple[str, ...], shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """The split of a leaf over the axis `model`.

    The rule also applies to pytrees that contain the structure of the parameters: gradients,
    optimiser states and adapters.

    Args:
        path: names of the keys from the root to the leaf; the last two determine the split.
        shape: shape of the leaf.
        devices: number of devices along `model`; an axis whose size they do not divide is not
            split.
    """
    axis = _split_axis(path, len(shape))
    if axis is None or shape[axis] % devices:
        return PartitionSpec()
    return PartitionSpec(*(MODEL if i == axis else None for i in range(len(shape))))


def _split_axis(path: tuple[str, ...], ndim: int) -> int | None:
    leaf = path[-1]
    module = path[-2] if len(path) > 1 else ""
    if leaf == "embedding" and ndim == 2:
        return 0
    if module in SPLIT_OUTPUTS and leaf in ("kernel", "bias", "b"):
        return ndim - 1
    if module in SPLIT_INPUTS and leaf in ("kernel", "a"):
        return 0
    return None


def shardings(params: Params, mesh: Mesh) -> Any:
    """The sharding of each leaf of the parameters, as a pytree of NamedSharding."""
    devices = mesh.shape[MODEL]

    def place(path: tuple, leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(k, "key", getattr(k, "name", ""))) for k in path)
        return NamedSharding(mesh, spec(names, leaf.shape, devices))

    return jax.tree_util.tree_map_with_path(place, params)


def shard(params: Params, mesh: Mesh | None) -> Params:
    """The parameters, distributed over a mesh with the axes `data` and `model`.

    Each device receives only its own part of an array, also of an array in host memory.

    Args:
        params: pytree of arrays, with the names of the parameters.
        mesh: the mesh; None for one device, which leaves the arrays unchanged.
    """
    return params if mesh is None else jax.device_put(params, shardings(params, mesh))


def sharded_shapes(shapes: Any, mesh: Mesh | None) -> Any:
    """Shapes that carry the sharding of each array, into which a checkpoint is restored directly.

    Args:
        shapes: pytree of the shapes of a state, as from `jax.eval_shape`.
        mesh: the mesh; None for one device, which leaves the shapes unchanged.
    """
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        shardings(shapes, mesh),
    )


def keep_sharded(params: Params, mesh: Mesh | None) -> Params:
    """Within a jitted program, require that arrays are distributed as by `shard`.

    Without it, the compiler may return an updated state with another sharding, which the same
    program does not accept as its next argument.
    """
    if mesh is None:
        return params
    return jax.lax.with_sharding_constraint(params, shardings(params, mesh))


def spread(batch: Any, mesh: Mesh | None) -> Any:
    """Within a jitted program, split the rows of a batch over the devices along `data`.

    Args:
        batch: pytree with leaves [B, ...].
        mesh: the mesh; None for one device, which leaves the batch unchanged. A batch whose number
            of rows the devices do not divide is left unchanged, too.
    """
    leaves = jax.tree.leaves(batch)
    if mesh is None or any(len(x) % data_size(mesh) for x in leaves):
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(DATA)))


def gather(batch: Any, mesh: Mesh | None) -> Any:
    """Within a jitted program, copy all rows of a batch to every device; the inverse of `spread`.

    Args:
        batch: pytree with leaves [B, ...].
        mesh: the mesh; None for one device, which leaves the batch unchanged.
    """
    if mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec()))


def over_devices(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """A function (params, rows) whose rows are split over the devices before it is computed.

    Args:
        function: function of parameters and of a batch with leaves [B, ...].
        mesh: the mesh; None for one device.
    """
    if mesh is None:
        return function
    return lambda params, rows: function(params, spread(rows, mesh))


def in_parts(function: Callable[[Any], Any], rows: Any, size: int, mesh: Mesh | None = None) -> Any:
    """function(rows), computed for at most `size` rows at a time in a loop of the same program.

    Every part contains rows of every device, so that no row moves to another device. If the parts
    are not equally long, the last row is computed more than once.

    Args:
        function: function of a pytree with leaves [n, ...], whose results have leaves [n, ...].
        rows: pytree with leaves [B, ...].
        size: maximum number of rows of a part; with a mesh it is rounded up to a multiple of the
            number of devices along `data`.
        mesh: the mesh; None for one device.

    Returns:
        The results for all rows, with leaves [B, ...].
    """
    count = len(jax.tree.leaves(rows)[0])
    shards = data_size(mesh)
    if size >= count:
        return function(rows)
    parts = -(-count // size)
    own = -(-count // (parts * shards))  # rows of one device in a part
    total = parts * shards * own

    def cut(x: jax.Array) -> jax.Array:
        x = x if total == count else x[jnp.minimum(jnp.arange(total), count - 1)]
        x = jnp.swapaxes(x.reshape(shards, parts, own, *x.shape[1:]), 0, 1)
        return x.reshape(parts, shards * own, *x.shape[3:])

    def join(x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x.reshape(parts, shards, own, *x.shape[2:]), 0, 1)
        return x.reshape(total, *x.shape[3:])[:count]

    found = jax.lax.map(lambda part: function(spread(part, mesh)), jax.tree.map(cut, rows))
    return spread(jax.tree.map(join, found), mesh)


def mesh_of(model: int, *rows: int) -> Mesh | None:
    """A mesh of as many devices as can share the work evenly; None for one device.

    Args:
        model: number of devices that each matrix is split over.
        rows: numbers of rows of the batches that are split over the remaining factor of the
            devices, such as those of a rollout and of a micro-batch. Devices that do not divide
            all of them are not used, and a warning states how many these are.

    Raises:
        ValueError: `model` does not divide the devices.
    """
    devices = jax.device_count()
    if devices % model:
        raise ValueError(f"model_parallel is {model}, which does not divide {devices} devices")
    common, most = math.gcd(*rows), devices // model
    data = max(n for n in range(1, most + 1) if common % n == 0)
    if data < most:
        warnings.warn(
            f"{data * model} of {devices} devices are used: batches of "
            f"{' and '.join(map(str, sorted({*rows})))} rows cannot be split evenly over {most}; "
            "change the batch size to use all devices",
            stacklevel=2,
        )
    return None if data * model == 1 else make_mesh(data, model)
