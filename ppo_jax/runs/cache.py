"""A persistent compilation cache, so that the second start of a command compiles nothing."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import jax

# Programs that compile in less time than this are not stored.
MIN_COMPILE_SECONDS = 0.3
MAX_BYTES = 2**30


def use() -> None:
    """Make JAX store compiled programs in the user's cache folder and reuse them from there.

    The folder is $XDG_CACHE_HOME/ppo_jax, or ~/.cache/ppo_jax. Settings of the user take
    precedence: JAX_COMPILATION_CACHE_DIR names another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false disables the cache. If the folder is not writable, programs
    are compiled again in each process. If a killed process left an incomplete entry, JAX prints a
    warning and compiles that program again until the folder is deleted.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    # Path.home() raises RuntimeError if the user has no home directory.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / "ppo_jax" / f"compiled-{_processor()}"
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
        _trim(folder)


def _processor() -> str:
    """A digest of the CPU type, because machines that share a home folder may need other code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]


def _trim(folder: Path) -> None:
    """Delete the oldest files until the folder holds at most MAX_BYTES.

    JAX's own limit, jax_compilation_cache_max_size, is not used: it requires the package filelock,
    without which nothing is cached, and with it JAX 0.10 stores nothing in a folder that already
    has entries.
    """
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may delete files at the same time
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MAX_BYTES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
