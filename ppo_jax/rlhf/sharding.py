"""A decoder on several devices, with batches split over one axis of a mesh and matrices over the
other.

The programs do not change: jit reads the sharding of its arguments, and the compiler adds the
communication. A matrix whose outputs are split by heads or by units of the MLP is followed by one
that sums over them, so that each of attention and MLP communicates once.

Source: Shoeybi et al. 2019, Megatron-LM, section 3 (the split of the matrices).
"""

from typing import Any

import jax
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


def shard(params: Params, mesh: Mesh) -> Params:
    """The parameters, distributed over a mesh with the axes `data` and `model`."""
    return jax.device_put(params, shardings(params, mesh))


def spread(batch: Any, mesh: Mesh | None) -> Any:
    """Within a jitted program, split the rows of a batch over the devices along `data`.

    Args:
        batch: pytree with leaves [B, ...].
        mesh: the mesh; None for one device, which leaves the batch unchanged.
    """
    if mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(DATA)))


def mesh_of(model: int, rows: int) -> Mesh | None:
    """A mesh of all devices; None for one device.

    Args:
        model: number of devices that each matrix is split over.
        rows: number of rows of a batch, which is split over the remaining factor of the devices.

    Raises:
        ValueError: `model` does not divide the devices, or the batch cannot be split evenly.
    """
    devices = jax.device_count()
    if devices % model:
        raise ValueError(f"model_parallel is {model}, which does not divide {devices} devices")
    data = devices // model
    if rows % data:
        raise ValueError(
            f"a batch of {rows} rows cannot be split evenly over {data} devices; change the batch "
            "size"
        )
    return None if devices == 1 else make_mesh(data, model)
