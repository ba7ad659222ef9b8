"""Compiled programs that outlive the process: the second start of a command compiles nothing."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import jax

# Programs that compile faster than this are not worth a file.
MIN_COMPILE_SECONDS = 0.3
MAX_BYTES = 2**30


def use() -> None:
    """Let JAX keep what it compiles in the user's cache folder, and look there first.

    $XDG_CACHE_HOME/ppo_jax or ~/.cache/ppo_jax. What the user has set stays:
    JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false switches it
    off. Where nothing can be written everything works as before, only slower. An entry that a kill
    left incomplete costs a warning and a compilation until the folder is deleted.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    # RuntimeError: a user without a home.
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
    """Names the kind of CPU: a home folder may be shared by machines whose code differs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]


def _trim(folder: Path) -> None:
    """Delete the files that were written first until the rest is at most MAX_BYTES.

    JAX's own limit, jax_compilation_cache_max_size, needs the package filelock, without which
    nothing is cached, and JAX 0.10 stores nothing in a folder that has entries from before.
    """
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process trims too
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MAX_BYTES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
