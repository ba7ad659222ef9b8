"""Test of training runs that are killed and resumed repeatedly."""

import collections
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.soak import sessions
from benchmarks.soak.outcome import Tally

FLAGS = (
    "--preset", "none", "--num-envs", "4", "--num-steps", "32", "--hidden", "8",
    "--total-timesteps", "1e6", "--eval-episodes", "0", "--checkpoint-seconds", "0.1",
)  # fmt: skip
KILLS_PER_RUN = 10
# Approximate number of file operations in two seconds of a session that saves ten times a second.
OPERATIONS = 400
TIMES, SAVES = "kill -9 at any time", "kill -9 between saves and in them"
FILES, MANIFESTS = "kill -9 at an operation on a file", "kill -9 between a save and its manifest"
MOMENTS = {TIMES: 0.15, SAVES: 0.25, FILES: 0.3, MANIFESTS: 0.3}
MANIFEST = r"(^| )\.?\d+\.json"


class Plan(NamedTuple):
    """The sizes and folders of the test.

    Attributes:
        kills: number of kills, over all runs.
        until: value of time.monotonic() at which the test ends.
        folder: folder of the runs.
        cache: folder of compiled programs.
        seed: random seed of the times of kills.
    """

    kills: int
    until: float
    folder: Path
    cache: Path
    seed: int


class _Killer:
    """Trains runs one after the other; each is killed several times and then finished."""

    def __init__(self, plan: Plan, expected: dict[str, Any]) -> None:
        self.plan, self.expected = plan, expected
        self.tallies = {name: Tally(name) for name in MOMENTS}
        self.runs = Tally("run finished after its kills")
        self.operations: collections.Counter[str] = collections.Counter()
        self.lock = threading.Lock()
        self.left = plan.kills

    def work(self, worker: int) -> None:
        """Train and kill runs until the number of kills or the time is reached."""
        rng, number = random.Random(self.plan.seed * 1000 + worker), 0
        while self._more():
            number += 1
            self._run(self.plan.folder / f"killed{worker}_{number}", rng)

    def _more(self) -> bool:
        return self.left > 0 and time.monotonic() < self.plan.until

    def _run(self, path: Path, rng: random.Random) -> None:
        before = ""  # the kind of the last kill, which the next session has to recover from
        for _ in range(KILLS_PER_RUN):
            if not self._more():
                break
            moment = rng.choices([*MOMENTS], [*MOMENTS.values()])[0]
            ended = self._session(path, moment, rng)
            if not self._outcome(before, ended, path):
                return
            before = moment if ended.code == -9 else ""
            self._note(ended.output)
            self.left -= bool(before)
            if not before:
                break
        ended = sessions.wait(sessions.start(path, FLAGS, self.plan.cache))
        if self._outcome(before, ended, path):
            differs = sessions.difference(sessions.left(path), self.expected)
            with self.lock:
                self.runs.count("wrong" if differs else "survived", f"{path}: {differs}")

    def _session(self, path: Path, moment: str, rng: random.Random) -> sessions.Ended:
        """Run one session, which is killed unless it finishes before."""
        number = {FILES: rng.randint(1, OPERATIONS), MANIFESTS: rng.randint(1, 30)}.get(moment, 0)
        names, known = MANIFEST if moment == MANIFESTS else "", sessions.saved(path)
        process = sessions.start(path, FLAGS, self.plan.cache, kill=number, names=names)
        if moment == TIMES:
            time.sleep(rng.uniform(0.0, 8.0))
        elif not number:
            sessions.wait_for_checkpoint(path, known, process)
            time.sleep(rng.uniform(0.0, 1.0))
        if not number:
            process.kill()
        return sessions.wait(process)

    def _note(self, output: str) -> None:
        """Count the file operations at which processes killed themselves."""
        for event, name in re.findall(r"^killed at: (\S+) (.*)$", output, re.MULTILINE):
            with self.lock:
                self.operations[event] += 1
                self.operations["of a manifest"] += bool(re.search(MANIFEST, name))

    def _outcome(self, before: str, ended: sessions.Ended, path: Path) -> bool:
        """Count the outcome of the last kill; returns whether the run can continue."""
        outcome = ended.outcome
        with self.lock:
            if before:
                self.tallies[before].count(outcome or "survived", f"{path}: {ended.output[-600:]}")
            elif outcome:
                self.runs.count(outcome, f"{path}: {ended.output[-600:]}")
        return not outcome


def run(plan: Plan, jobs: int) -> list[Tally]:
    """Kill and resume runs, and compare their results with an uninterrupted run.

    Args:
        plan: sizes and folders of the test.
        jobs: number of runs in parallel.
    """
    whole = plan.folder / "uninterrupted"
    ended = sessions.wait(sessions.start(whole, FLAGS, plan.cache))
    if ended.code:
        raise SystemExit(f"the uninterrupted run failed:\n{ended.output}")
    killer = _Killer(plan, sessions.left(whole))
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(killer.work, range(jobs)))
    counts = ", ".join(f"{n} {event}" for event, n in sorted(killer.operations.items()))
    killer.tallies[FILES].note = f"both: {counts}"
    return [t.done() for t in (*killer.tallies.values(), killer.runs)]
