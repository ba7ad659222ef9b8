"""Named arrays in a safetensors file, with a JSON header that describes the policy."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppo_jax.config import ConfigError
from ppo_jax.runs import files
from ppo_jax.types import PyTree

# Value of "format" in the header; safetensors headers contain only strings.
FORMAT = "ppo_jax.policy"


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path, for example "actor.body.Dense_0.kernel"."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in found}


def write(path: Path, tree: PyTree, header: dict[str, Any]) -> None:
    """Write all arrays of a tree to a file.

    Args:
        path: path of the file.
        tree: pytree of arrays.
        header: JSON values to store with the arrays.
    """
    from safetensors.numpy import save as serialized

    tensors = {n: np.array(x, order="C") for n, x in named(tree).items()}
    metadata = {"format": FORMAT, **{n: json.dumps(x) for n, x in header.items()}}
    metadata["sha256"] = digest(tensors, metadata)
    files.write_bytes(path, serialized(tensors, metadata))


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a file written by `write`: (arrays by name, header).

    Raises:
        ConfigError: the file was not written by `write`, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    found = metadata.pop("sha256", None)
    if found is not None and found != digest(tensors, metadata):
        raise ConfigError(
            f"{path} is damaged: its content does not match its digest; export the run again"
        )
    if metadata.pop("format", None) != FORMAT:
        raise ConfigError(
            f"{path} does not contain a ppo_jax policy: it has no header that describes how to use "
            "its weights; create one with python -m ppo_jax.export RUN --format safetensors"
        )
    return tensors, {name: json.loads(text) for name, text in metadata.items()}


def digest(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    """SHA-256 digest of the whole content of a file."""
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def fill(shapes: PyTree, tensors: dict[str, np.ndarray]) -> PyTree:
    """Replace the leaves of a tree by the arrays with the same names.

    Args:
        shapes: pytree of arrays or their shapes.
        tensors: name -> array.

    Raises:
        ConfigError: an array is missing or has another shape.
    """
    wanted = named(shapes)
    for name, shape in wanted.items():
        found = tensors[name].shape if name in tensors else "missing"
        if found != shape.shape:
            raise ConfigError(f"the weights do not fit: {name} is {found}, not {shape.shape}")
    return jax.tree.unflatten(jax.tree.structure(shapes), [tensors[name] for name in wanted])
