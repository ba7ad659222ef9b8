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
    off. Where nothing can be written everything works as before, only slower.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "ppo_jax" / f"compiled-{_processor()}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _trim(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def _processor() -> str:
    """Names the kind of CPU: a home folder may be shared by machines whose code differs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    words = f"{platform.machine()} {platform.processor()} {features}"
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def _trim(folder: Path) -> None:
    """Delete the oldest files until the rest is at most MAX_BYTES."""
    files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    total = sum(stat.st_size for _, stat in files)
    for path, stat in sorted(files, key=lambda entry: entry[1].st_mtime):
        if total <= MAX_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= stat.st_size
