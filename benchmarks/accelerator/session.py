"""One run of the command: it sends tasks to workers, limits their time and writes the rows.

This process does not use the device. If a task hangs or ends its worker, its row contains the
reason, and the next task gets a new worker.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerator import peers, report
from benchmarks.accelerator.tasks import FIELDS, KEY, Measured, Task
from benchmarks.accelerator.worker import SECTIONS, tasks_of
from benchmarks.table import Row, read, replace
from benchmarks.throughput.race import ROOT

# The sections in their order, and the fraction of the time after which each ends at the latest.
UNTIL = {
    "checks": 0.45,
    "control": 0.45,
    "language": 0.65,
    "peers": 0.7,
    "learning": 1.0,
    "profile": 1.0,
}
ORDER = tuple(UNTIL)
SILENT = "error: no answer within"
# Maximum number of seconds until a worker has imported its packages and found the device.
START = 90.0


class Refused(Exception):
    """The command cannot run on this machine; the message is one line."""


class Worker:
    """A process that measures the tasks of one section."""

    def __init__(self, section: str, smoke: bool, cache: str) -> None:
        """Start the process and wait until it has found the device.

        Args:
            section: name of the section whose tasks are measured.
            smoke: whether sizes are tiny.
            cache: folder for compiled programs, new for this run.

        Raises:
            Refused: JAX finds no device.
        """
        words = [sys.executable, "-m", "benchmarks.accelerator.worker", section]
        self.process = subprocess.Popen(
            [*words, *(["--smoke"] if smoke else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(smoke, cache),
        )
        self.answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.hello = self.answer(START)
        except BaseException:  # the process must also end on Ctrl-C
            self.end()
            raise
        if "device" not in self.hello:
            self.end()
            raise Refused(self.hello.get("refused") or self.hello["why"].removeprefix("error: "))

    def ask(self, task: str, seconds: float, ceilings: dict[str, float]) -> dict[str, Any]:
        """Measure a task; returns its rows, or the reason why there are none."""
        request = json.dumps({"task": task, "seconds": seconds, "ceilings": ceilings})
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer contains the reason
            print(request, file=self.process.stdin, flush=True)
        return self.answer(seconds)

    def answer(self, patience: float) -> dict[str, Any]:
        """The next answer; the process is killed if there is none in time."""
        try:
            return json.loads(self.answers.get(timeout=max(patience, 0.0)))
        except queue.Empty:
            self.end()
            return {"why": f"{SILENT} {patience:.0f} s"}

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None

    def end(self) -> None:
        """Kill the process, which may hang, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        code = self.process.wait()
        self.answers.put(json.dumps({"why": f"error: its process ended with code {code}"}))


def environment(smoke: bool, cache: str) -> dict[str, str]:
    """The environment variables of a worker.

    JAX has a CPU device besides the accelerator, may use most of the device's memory, and finds no
    compiled program of an earlier run. Tasks of full size do not share programs, so that the cache
    shortens only repeated runs within a task, and smoke runs, whose tasks have the same sizes.

    Args:
        smoke: whether sizes are tiny.
        cache: folder for compiled programs.
    """
    own = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(ROOT), *_path()])}
    platforms = own.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        own["JAX_PLATFORMS"] = f"{platforms},cpu"
    own.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", peers.MEMORY)
    if not (smoke and "JAX_COMPILATION_CACHE_DIR" in own):
        own["JAX_COMPILATION_CACHE_DIR"] = cache
    own.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    if smoke and importlib.util.find_spec("jax_plugins") is None:  # no accelerator's packages
        own.setdefault("XLA_FLAGS", quick_flags())
    return own


def quick_flags() -> str:
    """Flags of XLA for a smoke run on a CPU, which runs each program only briefly.

    They turn off optimisation and, on jaxlib 0.10, XLA's fusion emitters. The second flag is not
    set for other versions, because an unknown flag ends the process.
    """
    flags = "--xla_backend_optimization_level=0"
    older = importlib.metadata.version("jaxlib").startswith("0.10.")
    return flags + (" --xla_cpu_use_fusion_emitters=false" if older else "")


def _path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


@dataclasses.dataclass
class Session:
    """The state of one run of the command.

    Attributes:
        out: folder of the CSV.
        smoke: whether sizes are tiny.
        seconds: wall-clock time of the whole run in seconds.
        purejaxrl: folder of PureJaxRL's ppo.py.
        peers: folder of the peers' packages.
        cache: folder for compiled programs.
        sections: names of the sections that are measured.
        tasks: names of the only tasks that are measured; an empty tuple for all tasks.
    """

    out: Path
    smoke: bool
    seconds: float
    purejaxrl: Path | None
    peers: Path | None
    cache: str
    sections: tuple[str, ...] = ORDER
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Store the time at which the run starts."""
        self.begun, self.started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S")
        self.ceilings: dict[str, float] = {}
        self.rates: dict[str, float] = {}
        self.common: Row = {}
        self.failed: list[str] = []

    def run(self) -> list[str]:
        """Measure all sections; returns the names of the tasks that failed.

        Raises:
            Refused: there is no accelerator, and this is not a smoke run.
        """
        for section in (s for s in ORDER if s in self.sections):
            if section == "peers":
                self._peers()
            else:
                self._section(section)
        return self.failed

    def left(self, section: str) -> float:
        """The remaining seconds of a section; tasks chosen by name share the whole time."""
        share = 1.0 if self.tasks else UNTIL[section]
        return share * self.seconds - (time.monotonic() - self.begun)

    def wanted(self, task: str) -> bool:
        """Whether a task is measured; a peer's task may be chosen by its configuration's name."""
        return not self.tasks or task in self.tasks or task.partition(": ")[0] in self.tasks

    def _section(self, section: str) -> None:
        worker: Worker | None = None
        try:
            for task in tasks_of(section).values():
                if not self.wanted(task.name):
                    continue
                if self.left(section) >= task.least and (worker is None or not worker.alive):
                    worker = self._start(section)
                if self.left(section) < task.least:
                    self.keep(section, task.name, [{"why": "no time left"}])
                elif worker is None:
                    self.keep(section, task.name, [{"why": "error: its process did not start"}])
                else:
                    self._measure(worker, task)
        finally:
            if worker is not None:
                worker.end()

    def _start(self, section: str) -> Worker | None:
        """Start a worker; returns None if it does not start but an earlier one did.

        Raises:
            Refused: the first worker finds no device.
        """
        try:
            worker = Worker(section, self.smoke, self.cache)
        except Refused:
            if not self.common:
                raise
            return None
        try:
            self._meet(worker.hello)
        except Refused:
            worker.end()
            raise
        return worker

    def _measure(self, worker: Worker, task: Task) -> None:
        seconds = min(task.patience, self.left(task.section))
        answer = worker.ask(task.name, seconds, self.ceilings)
        why = answer.get("why", "")
        if why.startswith(SILENT) and seconds < task.patience:
            why = f"no time left: stopped after {seconds:.0f} s"
        if why.startswith("error"):
            # After an error of the device's runtime the process cannot be used any more.
            worker.end()
        rows = answer.get("rows") or [{"why": why}]
        if task.name == "ceilings":
            self.ceilings = {r["part"]: r["value"] for r in rows if "part" in r}
        self.keep(task.section, task.name, rows)

    def _meet(self, hello: dict[str, Any]) -> None:
        """Store the description of the machine, which is written into every row."""
        if hello["platform"] == "cpu" and not self.smoke:
            raise Refused(
                "JAX runs on the CPU, but these measurements are for an accelerator. On a machine "
                "with an NVIDIA driver, install jax[cuda13]; to test the command on a CPU, add "
                "--smoke"
            )
        self.common = {
            "started": self.started,
            "device": hello["device"],
            "versions": json.dumps(hello["versions"]),
            "cores": os.cpu_count(),
        }

    def _peers(self) -> None:
        chosen = [(cell, peer) for cell, peer in peers.names() if self.wanted(f"{cell}: {peer}")]
        if chosen and not self.common:
            worker = self._start(SECTIONS[0])
            if worker is not None:
                worker.end()
        for cell, peer in chosen:
            seconds = min(peers.PATIENCE, self.left("peers"))
            row: Measured = {"why": "no time left"}
            if seconds >= peers.LEAST:
                row = peers.measure(
                    cell,
                    peer,
                    device=self.common["device"],
                    folder=self.peers,
                    purejaxrl=self.purejaxrl,
                    patience=seconds,
                    # In a smoke run the sizes of the peers differ from those of the task.
                    ours=None if self.smoke else self.rates.get(cell),
                    smoke=self.smoke,
                )
            self.keep("peers", f"{cell}: {peer}", [row])

    def keep(self, section: str, task: str, rows: list[Measured]) -> None:
        """Write and print the rows of a task; a row without a value replaces none with a value."""
        for row in rows:
            name = f"{task}: {row['part']}" if "part" in row else task
            found = {k: v for k, v in row.items() if k in FIELDS}
            full = dict.fromkeys(FIELDS, "") | self.common | found
            full |= {"section": section, "task": name}
            if row.get("value", "") != "" or not self._measured(full):
                replace(self.out / report.FILE, [full], KEY, place)
            if "returns" in row:
                report.write_seeds(self.out, self.common["device"], name, row["returns"])
            if section == "control" and row.get("value"):
                self.rates[name] = float(row["value"])
            if row.get("passed") is False or str(row.get("why", "")).startswith("error"):
                self.failed.append(f"{section}: {name}")
            print(f"{time.monotonic() - self.begun:6.1f} s  {section:9} {line(name, full)}")
            sys.stdout.flush()

    def _measured(self, row: Row) -> bool:
        """Whether the file has a value for the task of this row."""
        key = [row[column] for column in KEY]
        kept = read(self.out / report.FILE)
        return any([r[column] for column in KEY] == key and r["value"] for r in kept)


def line(name: str, row: Row) -> str:
    """A row as a line of text for the terminal."""
    if row["why"]:
        return f"{name:38} {row['why']}"
    value = float(row["value"])
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    more = [f"compiled in {row['compile_seconds']} s"] if row["compile_seconds"] != "" else []
    more += [f"ppo_jax is {row['ratio']} times as fast"] if row["ratio"] != "" else []
    more += ["passed" if row["passed"] else "FAILED"] if row["passed"] != "" else []
    return f"{name:38} {shown:>12} {row['unit']}  {', '.join(more)}".rstrip()


def place(row: Row) -> tuple[str, int]:
    """Sort key of a row: its device, then its task; parts of a task keep their order."""
    key = (row["section"], row["task"])
    found = (i for i, task in enumerate(order()) if key == task or is_part(key, task))
    return str(row["device"]), next(found, len(order()))


def is_part(key: tuple[str, str], task: tuple[str, str]) -> bool:
    """Whether a row is a part of a task."""
    return key[0] == task[0] and key[1].startswith(f"{task[1]}: ")


@functools.cache
def order() -> list[tuple[str, str]]:
    """Pairs (section, task) of all measurements, in order."""
    found = [(section, name) for section in SECTIONS for name in tasks_of(section)]
    found += [("peers", f"{cell}: {peer}") for cell, peer in peers.names()]
    return sorted(found, key=lambda task: ORDER.index(task[0]))
