"""Memory growth of one long run, estimated from the second half of the run."""

import json
import time
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.soak import sessions
from benchmarks.soak.outcome import Tally

FLAGS = (
    "--preset", "none", "--num-envs", "64", "--num-steps", "128", "--hidden", "16",
    "--eval-episodes", "0", "--checkpoint-seconds", "5",
)  # fmt: skip
STEPS_PER_UPDATE = 64 * 128
# The largest growth over the whole run, in MB, that may be caused by the memory allocator.
LIMIT_MB = 32.0


def run(folder: Path, cache: Path, steps: int) -> list[Tally]:
    """Train and measure the resident memory of the process.

    Args:
        folder: folder of the run.
        cache: folder of compiled programs.
        steps: number of environment steps of the run.
    """
    tally = Tally(f"{steps / 1e6:g} M environment steps: memory stays flat")
    path = folder / "long"
    process = sessions.start(path, (*FLAGS, "--total-timesteps", str(steps)), cache)
    seen = []
    while process.poll() is None:
        resident = _resident_mb(process.pid)
        step = _step(path)
        if resident and 0 < step < steps - STEPS_PER_UPDATE:  # afterwards the figure is drawn
            seen.append((step, resident))
        time.sleep(0.25)
    ended = sessions.wait(process)
    if ended.code:
        tally.count("traceback", ended.output[-600:])
        return [tally.done()]
    growth, half = growth_mb(np.array(seen), steps)
    tally.note = (
        f"{growth:+.1f} MB over the run, 95 % interval ± {half:.1f}, of "
        f"{max(r for _, r in seen):,.0f} MB"
    )
    tally.count("wrong" if growth - half > LIMIT_MB else "survived", tally.note)
    return [tally.done()]


def growth_mb(seen: np.ndarray, steps: int) -> tuple[float, float]:
    """Memory growth over a run, extrapolated from the slope of its second half.

    Args:
        seen: [K, 2] measurements, each with the environment step and the memory in MB.
        steps: number of environment steps of the whole run.

    Returns:
        (growth in MB, half-width of its 95 % confidence interval)
    """
    later = seen[len(seen) // 2 :]
    if len(later) < 3 or np.ptp(later[:, 0]) == 0:
        return 0.0, float("inf")
    line = stats.linregress(later[:, 0], later[:, 1])
    return line.slope * steps, stats.t.ppf(0.975, len(later) - 2) * line.stderr * steps


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * 4096 / 2**20


def _step(path: Path) -> int:
    """The last environment step in metrics.jsonl, 0 before the first row."""
    try:
        with (path / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().splitlines()
        return int(json.loads(lines[-2])["env_step"])
    except (OSError, ValueError, IndexError, KeyError):
        return 0
