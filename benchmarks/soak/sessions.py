"""Training processes, and the comparison of their results."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.soak.outcome import digest

SECONDS = 300.0  # a process that takes longer is taken to hang
ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    """The result of a process.

    Attributes:
        code: exit code; −n if signal n ended the process.
        output: text that the process printed.
    """

    code: int
    output: str

    @property
    def outcome(self) -> str:
        """The outcome "refused" or "traceback"; "" if the process succeeded or was killed."""
        if "Traceback" in self.output or self.code not in (0, 1, 2, -9):
            return "traceback"
        if self.code in (1, 2):
            return "refused" if "error:" in self.output else "traceback"
        return ""


def start(
    path: Path, flags: Sequence[str], cache: Path, *, kill: int = 0, names: str = ""
) -> subprocess.Popen:
    """Start a process that trains a new run, or resumes the run in a folder.

    Args:
        path: folder of the run.
        flags: flags of `ppo_jax.train` for a new run.
        cache: folder of compiled programs.
        kill: number of the file operation at which the process kills itself; 0 for never.
        names: regular expression for the names of files whose operations count.
    """
    again = (path / "config.json").exists()
    words = ["--resume", str(path)] if again else ["--run-dir", str(path), *flags]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PPO_JAX_SOAK_KILL": str(kill),
        "PPO_JAX_SOAK_FOLDER": str(path),
        "PPO_JAX_SOAK_NAMES": names,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak.victim", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=path.parent,
    )


def wait(process: subprocess.Popen, seconds: float = SECONDS) -> Ended:
    """Wait for the end of a process; one that hangs is killed and gets the exit code 124."""
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return Ended(124, process.communicate()[0])
    return Ended(process.returncode, output)


def saved(path: Path) -> set[str]:
    """The names of the checkpoints in the folder of a run."""
    try:
        return {p.name for p in (path / "checkpoints").glob("*.json")}
    except OSError:
        return set()


def wait_for_checkpoint(path: Path, before: set[str], process: subprocess.Popen) -> None:
    """Wait until there is a new checkpoint or the process has ended."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline and saved(path) <= before:
        time.sleep(0.02)


def left(path: Path) -> dict[str, Any]:
    """The results of a finished run that must not depend on faults.

    Returns:
        A dict {"state": digest, "config": digest, "rows": {update: row}, "status": text}.
    """
    from ppo_jax import config as configs
    from ppo_jax.runs.metrics_log import read_metrics
    from ppo_jax.runs.record import read_summary
    from ppo_jax.runs.restore import load

    config, _, state = load(path)
    rows = {
        row["update"]: {k: v for k, v in row.items() if not k.endswith("_per_second")}
        for row in read_metrics(path / "metrics.jsonl")
    }
    return {
        "state": digest(state),
        "config": digest(configs.to_json(config)),
        "rows": rows,
        "status": read_summary(path).get("status"),
    }


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first difference between two results of `left`; "" if there is none."""
    for name in ("state", "config", "status"):
        if found[name] != expected[name]:
            return f"{name} differs from that of an uninterrupted run ({found[name]})"
    if found["rows"] != expected["rows"]:
        theirs, ours = found["rows"], expected["rows"]
        wrong = [n for n in theirs if theirs[n] != ours.get(n)]
        return f"{len(theirs)} rows instead of {len(ours)}, {len(wrong)} of them with other numbers"
    return ""
