"""A decoder on many devices: rows of the batch over one axis of a mesh, matrices over the other.

The programs stay what they are: jit sees where its arguments lie, and the compiler adds the
communication. A matrix whose result is split by heads or by units of the MLP is followed by one
that sums over them, so that each block communicates twice.

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
    """data × model devices, the first so many there are.

    Raises:
        ValueError: there are not enough.
    """
    devices = jax.devices()
    if data * model > len(devices):
        raise ValueError(
            f"a mesh of {data} x {model} needs {data * model} devices; there are {len(devices)}"
        )
    # Auto: the compiler chooses how intermediate results lie.
    kinds = (AxisType.Auto, AxisType.Auto)
    chosen = devices[: data * model]
    return jax.make_mesh((data, model), (DATA, MODEL), kinds, devices=chosen)


def spec(path: tuple[str, ...], shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """How a leaf is split over the axis `model`.

    Also for what repeats the parameters' structure: gradients, moments of an optimiser, adapters.

    Args:
        path: names on the way to it, of which the last two decide.
        shape: its shape.
        devices: along `model`; a size that they do not divide is not split.
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
    """Where each leaf of the parameters goes, as a tree of NamedSharding."""
    devices = mesh.shape[MODEL]

    def place(path: tuple, leaf: Any) -> NamedSharding:
        names = tuple(str(getattr(k, "key", getattr(k, "name", ""))) for k in path)
        return NamedSharding(mesh, spec(names, leaf.shape, devices))

    return jax.tree_util.tree_map_with_path(place, params)


def shard(params: Params, mesh: Mesh) -> Params:
    """The parameters, spread over a mesh with the axes `data` and `model`."""
    return jax.device_put(params, shardings(params, mesh))


def spread(batch: Any, mesh: Mesh | None) -> Any:
    """Within a program: the rows of a batch, to be worked on by the devices along `data`.

    Args:
        batch: a pytree with leaves [B, ...].
        mesh: None leaves it to the only device there is.
    """
    if mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(DATA)))


def mesh_of(model: int, rows: int) -> Mesh | None:
    """All devices, `model` of them to each matrix; None where there is one.

    Args:
        model: devices that share each matrix.
        rows: of a batch, which the others share.

    Raises:
        ValueError: the numbers do not divide.
    """
    devices = jax.device_count()
    if devices % model:
        raise ValueError(f"model_parallel is {model}, which does not divide {devices} devices")
    data = devices // model
    if rows % data:
        raise ValueError(f"{rows} rows do not divide over {data} devices")
    return None if devices == 1 else make_mesh(data, model)
