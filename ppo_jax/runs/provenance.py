"""What numbers were computed on: the device, the versions, the precision of matrix products."""

import importlib.metadata
import platform
from typing import Any

import jax

from ppo_jax import precision

PACKAGES = ("ppo_jax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """Python's and each relevant package's version."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def device(number: int | None = None) -> str:
    """What JAX runs on, e.g. "cpu" or "NVIDIA H200 x 8".

    Args:
        number: of devices that are used; None: all.
    """
    devices = jax.devices()
    kind, number = devices[0].device_kind, number or len(devices)
    return kind if number == 1 else f"{kind} x {number}"


def record(*configured: str, devices: int | None = None) -> dict[str, Any]:
    """What numbers were computed on: the device, the precision of its products, the versions.

    Args:
        configured: the precision of the run's matrix products; of a sweep that of each point.
        devices: number of those that are used; None: all.
    """
    in_effect = ", ".join(dict.fromkeys(map(precision.in_effect, configured)))
    return {"device": device(devices), "matmul_precision": in_effect, "versions": versions()}
