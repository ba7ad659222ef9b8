"""Whether JAX has the devices that were asked for, said in a line before anything starts."""

import importlib.util
import logging
import pkgutil
import warnings
from pathlib import Path

import jax

from ppo_jax.config import ConfigError

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
