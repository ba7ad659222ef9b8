"""Test of runs on a disk of 2 MB that is filled and emptied during training."""

import contextlib
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks.soak import sessions
from benchmarks.soak.outcome import Tally

FLAGS = (
    "--preset", "none", "--num-envs", "16", "--num-steps", "64", "--hidden", "32",
    "--total-timesteps", "1e6", "--eval-episodes", "0", "--checkpoint-seconds", "0.1",
)  # fmt: skip
CASE = "a 2 MB disk that fills and is emptied"


@contextlib.contextmanager
def _mounted(path: Path) -> Iterator[str]:
    """Mount a tmpfs of 2 MB; yields "", or the reason why it cannot be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        failed = found.stderr.strip() if found.returncode else ""
    except OSError as error:
        failed = str(error)
    try:
        yield failed
    finally:
        if not failed:
            subprocess.run(["umount", "-l", str(path)], check=False)


def _fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


class _Filler(threading.Thread):
    """A thread that fills a disk and empties it again, until it is stopped."""

    def __init__(self, ballast: Path, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.ballast, self.rng = ballast, rng
        self.fills, self.ended = 0, threading.Event()

    def run(self) -> None:
        """Alternate between an empty and a full disk, each for a random time."""
        while not self.ended.wait(self.rng.uniform(0.1, 1.5)):
            _fill(self.ballast)
            self.fills += 1
            self.ended.wait(self.rng.uniform(0.1, 1.0))
            self.ballast.unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop the thread and empty the disk."""
        self.ended.set()
        self.join()
        self.ballast.unlink(missing_ok=True)


def run(folder: Path, cache: Path, fills: int, seed: int) -> list[Tally]:
    """Train on a disk that becomes full; each run is finished later and compared.

    Args:
        folder: folder of the runs.
        cache: folder of compiled programs.
        fills: minimum number of times that the disk is filled.
        seed: random seed of the times at which it is filled and emptied.
    """
    tally, rng, number = Tally(CASE), random.Random(seed), 0
    whole = folder / "on_a_large_disk"
    ended = sessions.wait(sessions.start(whole, FLAGS, cache))
    if ended.code:
        raise SystemExit(f"the run on a large disk failed:\n{ended.output}")
    expected = sessions.left(whole)
    with _mounted(folder / "small") as failed:
        if failed:
            tally.skipped = f"no tmpfs can be mounted: {failed}"
            return [tally.done()]
        while tally.tries < fills:
            number += 1
            count, output, differs = _one(folder / "small" / f"run{number}", cache, rng, expected)
            bad = "traceback" if "Traceback" in output else "wrong" if differs else ""
            good = "refused" if "warning:" in output or "error:" in output else "survived"
            for k in range(max(count, 1)):
                tally.count(bad if bad and not k else good, f"{differs} {output[-600:]}")
            subprocess.run(["rm", "-rf", str(folder / "small" / f"run{number}")], check=True)
    return [tally.done()]


def _one(path: Path, cache: Path, rng: random.Random, expected: dict) -> tuple[int, str, str]:
    """One run: (number of times the disk was filled, output, difference to the expected result)."""
    filler = _Filler(path.with_name("ballast"), rng)
    filler.start()
    try:
        ended = sessions.wait(sessions.start(path, FLAGS, cache))
    finally:
        filler.stop()
    output = ended.output
    if ended.code:  # the last state could not be saved, or the run could not start
        ended = sessions.wait(sessions.start(path, FLAGS, cache))
        output += ended.output
    if ended.code:
        return filler.fills, output, f"not finished on the emptied disk ({ended.code})"
    return filler.fills, output, _difference(sessions.left(path), expected)


def _difference(found: dict, expected: dict) -> str:
    """As `sessions.difference`, but rows may be missing, because the run warns about them."""
    rows = {n: row for n, row in found["rows"].items() if row != expected["rows"].get(n)}
    return sessions.difference(found | {"rows": rows}, expected | {"rows": {}})
