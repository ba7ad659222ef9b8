"""Provenance of results: the device, the precision of matrix products, and the versions."""

import importlib.metadata
import platform
from typing import Any

import jax

from ppo_jax import precision

PACKAGES = ("ppo_jax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """The versions of Python and of each relevant package."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def device(number: int | None = None) -> str:
    """The device that JAX uses, for example "cpu" or "NVIDIA H200 x 8".

    Args:
        number: number of devices in use; None for all devices.
    """
    devices = jax.devices()
    kind, number = devices[0].device_kind, number or len(devices)
    return kind if number == 1 else f"{kind} x {number}"


def record(*configured: str, devices: int | None = None) -> dict[str, Any]:
    """The device, the precision of matrix products and the versions, for a summary.

    Args:
        configured: configured precision of matrix products; for a sweep, one for each trial.
        devices: number of devices in use; None for all devices.
    """
    in_effect = ", ".join(dict.fromkeys(map(precision.in_effect, configured)))
    return {"device": device(devices), "matmul_precision": in_effect, "versions": versions()}
