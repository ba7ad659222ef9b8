"""Contestants in turns: each in a process of its own, one at a time, A B C A B C."""

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
    """How a race is run.

    Attributes:
        peers: the Python that the peers are installed for.
        purejaxrl: folder of its ppo.py; None: it does not take part.
        rounds: how often each.
        seconds: of a round, about.
        patience: seconds without an answer after which a contestant is given up.
        worker: module that a contestant's process runs.
        devices: "one" for each contestant, or "all": one for each core of a CPU.
    """

    peers: str
    purejaxrl: Path | None = None
    rounds: int = 5
    seconds: float = 2.0
    patience: float = 300.0
    worker: str = "benchmarks.throughput.worker"
    devices: str = "one"


class Contestant:
    """A worker process; `why` says what ended it, "" while it runs."""

    def __init__(
        self,
        name: str,
        configuration: Any,
        settings: Settings,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Start it and wait until it has compiled and trained once."""
        self.name, self.configuration, self.settings = name, configuration, settings
        self.rounds: list[dict[str, Any]] = []
        python = sys.executable if name == "ours" else settings.peers
        words = [python, "-m", settings.worker, name, configuration.to_json()]
        if name == "purejaxrl" and settings.purejaxrl is not None:
            words += ["--purejaxrl", str(settings.purejaxrl.resolve())]
        words += ["--devices", settings.devices]
        # A cache of compiled programs would make the second compilation a different quantity.
        own = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        own |= {
            "PYTHONPATH": str(ROOT),
            "BENCHMARK_STARTED": repr(time.time()),
            # All contestants are alive at once: none may take a GPU's memory for itself.
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
        except BaseException:  # Ctrl-C: one that hangs would stay for ever
            self.end()
            raise

    def round(self) -> None:
        """One round, if it still runs."""
        if self.why:
            return
        assert self.process.stdin is not None
        try:
            print(json.dumps({"seconds": self.settings.seconds}), file=self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says what happened
        answer = self._answer()
        if not self.why:
            self.rounds.append(answer)

    def end(self) -> None:
        """Let it go; one that hangs does not listen."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put('{"error": "died without a word"}')

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
    """All contestants on one configuration, by what they are called.

    They start one after the other, so that each compiles alone; then rounds in turns, while the
    others wait for their next line and do nothing.
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
