"""Measurement of contestants in interleaved rounds, A B C A B C, each in a separate process."""

import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NAMES = {
    "ours": "ppo_jax",
    "purejaxrl": "PureJaxRL",
    "rejax": "Rejax",
    "brax": "Brax",
    "sb3": "Stable-Baselines3",
    "sbx": "SBX",
    "rltools": "RLtools",
}


@dataclasses.dataclass
class Settings:
    """Settings of a race.

    Attributes:
        peers: path of the Python interpreter of the peers.
        purejaxrl: folder of PureJaxRL's ppo.py; None if PureJaxRL is not measured.
        rounds: number of rounds.
        seconds: approximate duration of a round in seconds.
        patience: seconds after which a contestant that does not answer is stopped.
        worker: module that the process of a contestant runs.
        devices: "one" for one device per contestant, "all" for one per core of a CPU.
    """

    peers: str
    purejaxrl: Path | None = None
    rounds: int = 5
    seconds: float = 2.0
    patience: float = 300.0
    worker: str = "benchmarks.throughput.worker"
    devices: str = "one"


class Contestant:
    """A worker process; `why` is the reason for its end, "" while it runs."""

    def __init__(
        self,
        name: str,
        configuration: Any,
        settings: Settings,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start the process and wait until it has compiled and trained once."""
        self.name, self.configuration, self.settings = name, configuration, settings
        self.rounds: list[dict[str, Any]] = []
        python = sys.executable if name == "ours" else settings.peers
        words = [python, "-m", settings.worker, name, configuration.to_json()]
        if name == "purejaxrl" and settings.purejaxrl is not None:
            words += ["--purejaxrl", str(settings.purejaxrl.resolve())]
        words += ["--devices", settings.devices]
        # With a cache of compiled programs, compile times of a second run would not be comparable.
        own = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        own |= {
            "PYTHONPATH": str(ROOT),
            "BENCHMARK_STARTED": repr(time.time()),
            # All contestants run at the same time, so none may reserve all memory of a GPU.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=own | (environment or {}),
        )
        self.answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self.why = ""
        try:
            self.ready = self._answer()
        except BaseException:  # a process that hangs must also end on Ctrl-C
            self.end()
            raise

    def round(self) -> None:
        """Run one round, if the process is still running."""
        if self.why:
            return
        assert self.process.stdin is not None
        try:
            print(json.dumps({"seconds": self.settings.seconds}), file=self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer contains the reason
        answer = self._answer()
        if not self.why:
            self.rounds.append(answer)

    def end(self) -> None:
        """Kill the process, which may hang, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put('{"error": "the process ended unexpectedly"}')

    def _answer(self) -> dict[str, Any]:
        try:
            answer = json.loads(self.answers.get(timeout=self.settings.patience))
        except queue.Empty:
            answer = {"error": f"no answer within {self.settings.patience:.0f} s"}
        self.why = answer.get("unsupported") or answer.get("error") or ""
        if self.why:
            self.end()
        return answer


def race(
    configuration: Any,
    names: Sequence[str],
    settings: Settings,
    say: Callable[[str], None] = print,
    called: Mapping[str, str] = NAMES,
) -> list[Contestant]:
    """Measure contestants on one configuration.

    They start one after the other, so that only one compiles at a time. Then they run rounds in
    turns, while the others wait for their next request and use no CPU time.

    Args:
        configuration: configuration to measure.
        names: names of the contestants' modules.
        settings: settings of the race.
        say: function that prints a line of text.
        called: names of the contestants in the output.

    Returns:
        The contestants, after their processes have ended.
    """
    field: list[Contestant] = []
    try:
        for name in names:
            contestant = Contestant(name, configuration, settings)
            field.append(contestant)
            ready = contestant.ready
            state = contestant.why or f"compiled in {ready['compile_seconds']:.1f} s"
            say(f"{configuration.name}, {settings.devices}: {called[name]}: {state}")
        for _ in range(settings.rounds):
            for contestant in field:
                contestant.round()
    finally:
        for contestant in field:
            contestant.end()
    return field
