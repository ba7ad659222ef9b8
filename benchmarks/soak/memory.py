"""The memory of one long run: its slope over the second half."""

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
# Growth over the whole run that is not told from the allocator's moods.
LIMIT_MB = 32.0


def run(folder: Path, cache: Path, steps: int) -> list[Tally]:
    """Train and watch the resident set.

    Args:
        folder: for the run.
        cache: folder of compiled programs.
        steps: environment steps.
    """
    tally = Tally(f"{steps / 1e6:g} M environment steps: memory stays flat")
    path = folder / "long"
    process = sessions.start(path, (*FLAGS, "--total-timesteps", str(steps)), cache)
    seen = []
    while process.poll() is None:
        resident = _resident_mb(process.pid)
        step = _step(path)
        if resident and 0 < step < steps - STEPS_PER_UPDATE:  # later it draws its figure
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
    """Slope of memory over the second half, times the length of the run, and its 95 % half-width.

    Args:
        seen: [K, 2] environment steps and MB.
        steps: of the whole run.
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
    """The last step in metrics.jsonl."""
    try:
        with (path / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().splitlines()
        return int(json.loads(lines[-2])["env_step"])
    except (OSError, ValueError, IndexError, KeyError):
        return 0
