"""The devices of a run: whether JAX has those that were asked for, and how they share a state."""

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
from ppo_jax.config import ConfigError
from ppo_jax.runs import global_arrays
from ppo_jax.types import PyTree

# Any of them is there if a driver is: on Linux, in containers, and on Windows' Linux.
NVIDIA_DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
CUDA = ("cuda", "gpu")
WITHOUT_A_GPU = (
    "to use an NVIDIA GPU, install its driver and the CUDA packages (pip install 'jax[cuda13]', or "
    "PPO_JAX_DEVICE=cuda python3 run.py train, which makes an environment with them)"
)
ON_THE_CPU = "to run on the CPU, unset JAX_PLATFORMS or set JAX_PLATFORMS=cpu"


def check() -> None:
    """Refuse platforms that JAX does not have; warn where a GPU was prepared for and is not there.

    Only where JAX_PLATFORMS names something other than the CPU are the devices started here: a
    sweep still has to choose the number of its CPU devices.

    Raises:
        ConfigError: what was asked for, why there is none, and what to do.
    """
    platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    names = [name.strip() for name in platforms.split(",") if name.strip()]
    stranded = (not names or bool({*names} & {*CUDA})) and _cuda_packages() and not _nvidia_driver()
    if stranded:
        # What JAX logs is a traceback about the first of NVIDIA's libraries that does not start.
        logging.getLogger("jax._src.xla_bridge").addFilter(_about_something_else)
    if names and names != ["cpu"]:
        _start(platforms, names)
    if stranded:
        warnings.warn(
            "the CUDA packages are installed, but no NVIDIA driver is found; running on the CPU",
            stacklevel=1,
        )


class Layout(NamedTuple):
    """A state on several devices.

    Attributes:
        mesh: the devices, along the axis `parallel.DEVICES`.
        specs: of the state, a tree of PartitionSpec that may end above its leaves.
    """

    mesh: Mesh
    specs: PyTree

    def place(self, state: PyTree) -> PyTree:
        """The state where it is worked on."""
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
    """How so many devices share a state; None where there is one.

    Args:
        number: of devices, which divides the number of parts.
        axes: of the state, a tree that may end above its leaves: 0 where each part has leaves of
            its own, [D, ...], and None for what all have in common.
    """
    if number == 1:
        return None
    split, whole = PartitionSpec(parallel.DEVICES), PartitionSpec()
    specs = jax.tree.map(lambda x: whole if x is None else split, axes, is_leaf=lambda x: x is None)
    return Layout(Mesh(np.array(jax.devices()[:number]), (parallel.DEVICES,)), specs)


def chosen(asked: str) -> int:
    """The number of devices that `--devices` asks for.

    A machine without accelerators has as many as are asked for: its CPU is divided among them.

    Args:
        asked: "all", or a number.

    Raises:
        ConfigError: neither, or there are not so many.
    """
    if asked != "all" and not (asked.isascii() and asked.isdecimal() and int(asked) > 0):
        raise ConfigError(f"devices is {asked!r}; it must be a number >= 1, or all")
    if asked != "all" and int(asked) > 1:
        with contextlib.suppress(RuntimeError):  # JAX has been used in this process before
            jax.config.update("jax_num_cpu_devices", int(asked))
    there = 1 if asked == "1" else jax.device_count()
    if asked != "all" and int(asked) > there:
        raise ConfigError(
            f"devices is {asked}, but there are {there} ({jax.devices()[0].platform}); give a "
            "number up to that, or all. (A process that has used JAX before cannot divide the CPU "
            "among more devices)"
        )
    return there if asked == "all" else int(asked)


def of_processes(asked: str, processes: int) -> int:
    """The number of devices of several processes: all that they have.

    Args:
        asked: "all", "1" as where nothing is asked for, or their number.
        processes: number of processes.

    Raises:
        ConfigError: there are more, or fewer, or the processes would have different numbers.
    """
    if asked.isdecimal() and int(asked) > 1:
        if int(asked) % processes:
            raise ConfigError(
                f"devices is {asked}, which do not divide over {processes} processes; leave it "
                "out: all devices of all processes are used"
            )
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", int(asked) // processes)
    there, own = jax.device_count(), jax.local_device_count()
    if asked not in ("1", "all", str(there)):
        raise ConfigError(
            f"devices is {asked!r}, but {processes} processes have {there} together, and all of "
            "them are used; give --devices all"
        )
    if there != own * processes:
        raise ConfigError(
            f"this process has {own} devices, and all {processes} together have {there}; each must "
            "have equally many"
        )
    return there


def share(number: int, parts: int) -> int:
    """How many of the devices can have equally many parts; those that cannot are told of.

    Args:
        number: of devices.
        parts: of the environments.
    """
    most = max(n for n in range(1, min(number, parts) + 1) if parts % n == 0)
    if most < number:
        warnings.warn(
            f"the environments of this run are in {parts} part{'s' * (parts > 1)}, which do not "
            f"divide over {number} devices: {most} of these devices are used; the number of parts "
            "is chosen when a run begins (--parts)",
            stacklevel=1,
        )
    return most


def on_one(tree: PyTree) -> PyTree:
    """What all devices have in common, on the first of them."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _start(platforms: str, names: list[str]) -> None:
    """Start the devices that were asked for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX passes over CUDA where it sees no GPU, and then asserts that something is left.
        said = str(error).strip().partition("\n")[0].partition(" (set JAX_PLATFORMS")[0]
        reason = f" ({said})" if said else ""
        todo = f"{WITHOUT_A_GPU}; {ON_THE_CPU}" if {*names} & {*CUDA} else ON_THE_CPU
        raise ConfigError(
            f"JAX_PLATFORMS={platforms}, but JAX finds no such device{reason}; {todo}"
        ) from error


def _about_something_else(record: logging.LogRecord) -> bool:
    return "jax_plugins.xla_cuda" not in record.getMessage()


def _cuda_packages() -> bool:
    """Whether JAX has its plugin for CUDA."""
    plugins = importlib.util.find_spec("jax_plugins")
    folders = plugins.submodule_search_locations if plugins is not None else None
    return any(m.name.startswith("xla_cuda") for m in pkgutil.iter_modules(folders or []))


def _nvidia_driver() -> bool:
    return any(Path(path).exists() for path in NVIDIA_DRIVER)
