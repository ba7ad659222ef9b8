"""Checks that a run fits in memory, before compilation where this is possible.

The first check counts only arrays that a run always needs, so that a run that fits is never
refused. The compiler's additional memory is known after compilation; other failures are reported
when a device runs out of memory.
"""

import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppo_jax.config import ConfigError
from ppo_jax.runs.job import Job, RunFailed
from ppo_jax.types import PyTree

MEMINFO = Path("/proc/meminfo")
# Memory limits of containers for both versions of control groups: (limit, usage, statistics with
# the part of the usage that the kernel can reclaim).
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
ADVICE = "halve --num-envs or --num-steps, or make the network smaller (--hidden)"


def bytes_of(tree: PyTree) -> int:
    """Number of bytes of arrays, or of their shapes."""
    found = [x for x in jax.tree.leaves(tree) if hasattr(x, "shape") and hasattr(x, "dtype")]
    # PRNG keys take only a few bytes.
    plain = [x for x in found if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in plain)


def available(device: Any = None) -> int | None:
    """Free bytes on a device; None if unknown.

    Args:
        device: a JAX device; None for the first one.
    """
    device = jax.local_devices()[0] if device is None else device
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    free = _meminfo()
    limits = [left for paths in CGROUPS if (left := _cgroup(*paths)) is not None]
    found = [x for x in (free, *limits) if x is not None]
    return min(found) if found else None


def _meminfo() -> int | None:
    """Available memory plus free swap; None if unknown."""
    try:
        text = MEMINFO.read_text()
    except OSError:
        return None
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    if "MemAvailable" not in found:
        return None
    return 1024 * (int(found["MemAvailable"]) + int(found.get("SwapFree", 0)))


def _cgroup(limit: str, usage: str, stat: str) -> int | None:
    """Memory that a control group can still use; None if it has no limit."""
    try:
        most = int(Path(limit).read_text())
        used = int(Path(usage).read_text())
        found = dict(line.split() for line in Path(stat).read_text().splitlines())
    except (OSError, ValueError):
        return None
    if most >= 2**60:
        return None
    return most - used + int(found.get("inactive_file", 0)) + int(found.get("active_file", 0))


def check(job: Job) -> None:
    """Refuse a job whose state and other required arrays do not fit in memory.

    Raises:
        ConfigError: the required bytes, the available bytes, and a remedy.
    """
    if job.shapes is None:
        return
    # Several devices may share the arrays.
    parts = {"the state": bytes_of(job.shapes), **job.needs}
    devices = job.layout.mesh.size if job.layout is not None else jax.local_device_count()
    needed, there = sum(parts.values()) // devices, available()
    if there is None or needed <= there:
        return
    listed = ", ".join(f"{what} {text(size)}" for what, size in parts.items())
    raise ConfigError(
        f"out of memory: {job.name} needs at least {text(needed)} ({listed}), and "
        f"{text(there)} are available; {ADVICE}"
    )


def check_program(name: str, compiled: Any) -> None:
    """Refuse a compiled program that does not fit in the free memory.

    Raises:
        RunFailed: the required bytes, the available bytes, and a remedy.
    """
    analysis = getattr(compiled, "memory_analysis", lambda: None)()
    there = available()
    if analysis is None or there is None:
        return
    more = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    more -= analysis.alias_size_in_bytes
    if more > there:
        raise RunFailed(
            f"out of memory: {name} needs {text(more)} in addition to the memory in use, and "
            f"{text(there)} are free; {ADVICE}; nothing was computed"
        )


def is_exhausted(error: BaseException) -> bool:
    """Whether a runtime error reports that a device is out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def exhausted(error: BaseException) -> str:
    """A one-line message for such an error, with the requested bytes if the error names them."""
    found = re.search(r"allocat\w* (?:of )?(\d+)", str(error))
    asked = f" while {text(int(found.group(1)))} were requested" if found else ""
    there = available()
    left = "" if there is None else f" and {text(there)} are free now"
    return f"out of memory{asked}{left}: {ADVICE}"


def text(size: int) -> str:
    """A number of bytes as text with a unit."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:,} bytes"
