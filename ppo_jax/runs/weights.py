"""Arrays by name in a safetensors file, with a header of JSON that says what they belong to."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppo_jax.config import ConfigError
from ppo_jax.runs import files
from ppo_jax.types import PyTree

# The header's keys: strings, as safetensors has them.
FORMAT = "ppo_jax.policy"


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by what leads to them: "actor.body.Dense_0.kernel"."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in found}


def write(path: Path, tree: PyTree, header: dict[str, Any]) -> None:
    """All arrays of a tree in a file.

    Args:
        path: of the file.
        tree: of arrays.
        header: what to keep with them, as JSON.
    """
    from safetensors.numpy import save as serialized

    tensors = {n: np.array(x, order="C") for n, x in named(tree).items()}
    metadata = {"format": FORMAT, **{n: json.dumps(x) for n, x in header.items()}}
    metadata["sha256"] = _digest(tensors, metadata)
    files.write_bytes(path, serialized(tensors, metadata))


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays by name, header) of a file that `write` made.

    Raises:
        ConfigError: it is none, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    found = metadata.pop("sha256", None)
    if found is not None and found != _digest(tensors, metadata):
        raise ConfigError(f"{path} is damaged: its digest is another; export the run again")
    if metadata.pop("format", None) != FORMAT:
        raise ConfigError(
            f"{path} holds no policy of ppo_jax: there is no header that says how to use its "
            "weights; make one with python -m ppo_jax.export RUN --format safetensors"
        )
    return tensors, {name: json.loads(text) for name, text in metadata.items()}


def _digest(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    """SHA-256 of all that a file holds."""
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def fill(shapes: PyTree, tensors: dict[str, np.ndarray]) -> PyTree:
    """The tree of these descriptions with the arrays of that name in it.

    Args:
        shapes: tree of arrays or their descriptions.
        tensors: name -> array.

    Raises:
        ConfigError: one is missing, or has another shape.
    """
    wanted = named(shapes)
    for name, shape in wanted.items():
        found = tensors[name].shape if name in tensors else "missing"
        if found != shape.shape:
            raise ConfigError(f"the weights do not fit: {name} is {found}, not {shape.shape}")
    return jax.tree.unflatten(jax.tree.structure(shapes), [tensors[name] for name in wanted])
