"""Time from the start of `python -m ppo_jax.train` to its first update, with and without a cache
of compiled programs."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import Row
from benchmarks.throughput.race import ROOT

FIELDS = (
    "jax", "device", "command", "first_start_seconds", "second_start_seconds", "slowest", "starts",
)  # fmt: skip
KEY = ("jax", "device", "command")
COMMAND = "python -m ppo_jax.train --preset none --num-envs 4 --num-steps 128"
AGAIN = 5


def seconds_to_first_update(home: Path, run_dir: Path) -> float:
    """Start the command and wait for the first line of its metrics.

    Args:
        home: folder of the cache of compiled programs.
        run_dir: run directory.

    Raises:
        SystemExit: the command ended before its first update.
    """
    ours = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    environment |= {"XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *COMMAND.split()[1:], "--run-dir", str(run_dir)]
    log = run_dir / "metrics.jsonl"
    started = time.perf_counter()
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (log.exists() and log.stat().st_size):
            if process.poll() is not None:
                raise SystemExit(f"{COMMAND} ended with exit code {process.returncode}")
            time.sleep(0.005)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()


def restart(jax: str) -> Row:
    """Measure one start with an empty cache and several starts with a filled one."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        first = seconds_to_first_update(home, home / "run0")
        device = json.loads((home / "run0/summary.json").read_text())["device"]
        again = [seconds_to_first_update(home, home / f"run{k}") for k in range(1, AGAIN + 1)]
    return {
        "jax": jax,
        "device": device,
        "command": COMMAND,
        "first_start_seconds": f"{first:.2f}",
        "second_start_seconds": f"{statistics.median(again):.2f}",
        "slowest": f"{max(again):.2f}",
        "starts": AGAIN,
    }


def markdown(rows: list[Row]) -> str:
    """A table of the seconds of the first start and of later starts."""
    lines = [
        "| jax | nothing compiled yet | later starts: median | slowest of them |",
        "|---|---|---|---|",
    ]
    for r in rows:
        cells = (r["first_start_seconds"], r["second_start_seconds"], r["slowest"])
        lines.append(f"| {r['jax']} | " + " | ".join(f"{c} s" for c in cells) + " |")
    return "\n".join(lines) + "\n"
