"""The devices of a run: checks that JAX has the requested ones, and how they share a state."""

import contextlib
import importlib.util
import logging
import pkgutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ppo_jax import parallel
from ppo_jax.config import ConfigError, installation
from ppo_jax.runs import global_arrays
from ppo_jax.types import PyTree

# At least one of these exists if a driver is installed: Linux, containers, Windows' WSL.
NVIDIA_DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
CUDA = ("cuda", "gpu")
WITHOUT_A_GPU = (
    "to use an NVIDIA GPU, install its driver and JAX's CUDA packages ({pip}, or "
    "PPO_JAX_DEVICE=cuda python3 run.py train, which creates a virtual environment with them)"
)
ON_THE_CPU = "to run on the CPU, unset JAX_PLATFORMS or set JAX_PLATFORMS=cpu"


def check() -> None:
    """Refuse platforms that JAX cannot use; warn if CUDA is installed but there is no driver.

    Devices are initialised here only if JAX_PLATFORMS names a platform other than the CPU, because
    a sweep chooses its number of CPU devices later.

    Raises:
        ConfigError: a requested platform is missing; the message gives the reason and a remedy.
    """
    platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    names = [name.strip() for name in platforms.split(",") if name.strip()]
    stranded = (not names or bool({*names} & {*CUDA})) and _cuda_packages() and not _nvidia_driver()
    if stranded:
        # JAX would log a traceback about the first NVIDIA library that cannot be loaded.
        logging.getLogger("jax._src.xla_bridge").addFilter(_about_something_else)
    if names and names != ["cpu"]:
        _start(platforms, names)
    if stranded:
        warnings.warn(
            "the CUDA packages are installed, but no NVIDIA driver is found; running on the CPU",
            stacklevel=1,
        )


class Layout(NamedTuple):
    """The placement of a state on several devices.

    Attributes:
        mesh: the devices, along the axis `parallel.DEVICES`.
        specs: partition of the state, a tree of PartitionSpec; one entry may stand for a subtree.
    """

    mesh: Mesh
    specs: PyTree

    def place(self, state: PyTree) -> PyTree:
        """Copy a state to the devices."""
        placed = jax.tree.map(
            lambda spec, tree: jax.tree.map(lambda x: self._put(x, spec), tree),
            self.specs,
            state,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )
        return jax.block_until_ready(placed)

    def _put(self, x: Any, spec: PartitionSpec) -> jax.Array:
        return global_arrays.spread(x, NamedSharding(self.mesh, spec))


def layout(number: int, axes: PyTree) -> Layout | None:
    """The layout of a state on several devices; None for one device.

    Args:
        number: number of devices, a divisor of the number of parts.
        axes: a tree whose entries may stand for subtrees of the state: 0 for leaves [D, ...] that
            are split over the devices, None for leaves that all devices share.
    """
    if number == 1:
        return None
    split, whole = PartitionSpec(parallel.DEVICES), PartitionSpec()
    specs = jax.tree.map(lambda x: whole if x is None else split, axes, is_leaf=lambda x: x is None)
    return Layout(Mesh(np.array(jax.devices()[:number]), (parallel.DEVICES,)), specs)


def chosen(value: str) -> int:
    """The number of devices for a value of `--devices`.

    On a machine without accelerators, any number is available: the CPU is divided among them.

    Args:
        value: "all", or a number as text.

    Raises:
        ConfigError: the value is neither, or exceeds the number of devices.
    """
    if value != "all" and not (value.isascii() and value.isdecimal() and int(value) > 0):
        raise ConfigError(f"devices is {value!r}; it must be a number >= 1, or all")
    if value != "all" and int(value) > 1:
        with contextlib.suppress(RuntimeError):  # JAX is already initialised in this process
            jax.config.update("jax_num_cpu_devices", int(value))
    there = 1 if value == "1" else jax.device_count()
    if value != "all" and int(value) > there:
        raise ConfigError(
            f"devices is {value}, but this process has {there} ({jax.devices()[0].platform}); give "
            "a number up to that, or all. (A process that has already used JAX cannot divide the "
            "CPU among more devices)"
        )
    return there if value == "all" else int(value)


def of_processes(value: str, processes: int) -> int:
    """The number of devices of several processes; all devices are always used.

    Args:
        value: "all", the total number of devices as text, or "1", which is the default.
        processes: number of processes.

    Raises:
        ConfigError: the number is not the total, or the processes have unequal numbers.
    """
    if value.isdecimal() and int(value) > 1:
        if int(value) % processes:
            raise ConfigError(
                f"devices is {value}, which is not divisible by {processes} processes; omit the "
                "option: all devices of all processes are used"
            )
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", int(value) // processes)
    there, own = jax.device_count(), jax.local_device_count()
    if value not in ("1", "all", str(there)):
        raise ConfigError(
            f"devices is {value!r}, but {processes} processes have {there} devices in total, and "
            "all of them are used; give --devices all"
        )
    if there != own * processes:
        raise ConfigError(
            f"this process has {own} devices, and all {processes} processes have {there} in total; "
            "each process must have the same number"
        )
    return there


def share(number: int, parts: int) -> int:
    """The largest usable number of devices that divides the number of parts; warns if smaller.

    Args:
        number: number of devices.
        parts: number of equal parts into which the environments are divided.
    """
    most = max(n for n in range(1, min(number, parts) + 1) if parts % n == 0)
    if most < number:
        warnings.warn(
            f"the environments of this run are divided into {parts} part{'s' * (parts > 1)}, which "
            f"cannot be distributed evenly over {number} devices: {most} of the devices are used. "
            "The number of parts is fixed when a run starts (--parts)",
            stacklevel=1,
        )
    return most


def on_one(tree: PyTree) -> PyTree:
    """Copies of the leaves that all devices share, from the first device."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _start(platforms: str, names: list[str]) -> None:
    """Initialise the requested devices."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX skips CUDA if it finds no GPU, and then fails an assertion if no platform is left.
        cause = str(error).strip().partition("\n")[0].partition(" (set JAX_PLATFORMS")[0]
        reason = f" ({cause})" if cause else ""
        install = WITHOUT_A_GPU.format(pip=installation.command("jax[cuda13]"))
        todo = f"{install}; {ON_THE_CPU}" if {*names} & {*CUDA} else ON_THE_CPU
        raise ConfigError(
            f"JAX_PLATFORMS={platforms}, but JAX finds no such device{reason}; {todo}"
        ) from error


def _about_something_else(record: logging.LogRecord) -> bool:
    return "jax_plugins.xla_cuda" not in record.getMessage()


def _cuda_packages() -> bool:
    """Whether JAX's CUDA plugin is installed."""
    plugins = importlib.util.find_spec("jax_plugins")
    folders = plugins.submodule_search_locations if plugins is not None else None
    return any(m.name.startswith("xla_cuda") for m in pkgutil.iter_modules(folders or []))


def _nvidia_driver() -> bool:
    return any(Path(path).exists() for path in NVIDIA_DRIVER)
