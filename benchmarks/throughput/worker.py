"""The process of one contestant, which receives requests for rounds on stdin.

python -m benchmarks.throughput.worker NAME CONFIGURATION_AS_JSON [--purejaxrl PATH] [--devices all]

Answers are lines of JSON on stdout: {"ready": true, ...} after compilation and a first run, then
one line for each request {"seconds": 2.0}, until the end of stdin. The process ends after
{"unsupported": reason} or {"error": message}. This module imports only the standard library and the
module of the contestant, because ppo_jax is not installed in the environment of the peers.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, TextIO

from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.contestants import FIRST, Program, Unsupported

# Set by the parent just before it starts this process, so that the start of Python is included.
STARTED = float(os.environ.get("BENCHMARK_STARTED", time.time()))
# A round is repeated, up to TRIES times, if it takes less than this fraction of its duration,
# because the rate was estimated wrongly.
LEAST_SHARE, TRIES = 0.4, 3


def private_stdout() -> TextIO:
    """Reserve stdout for answers; the output of libraries is redirected to stderr.

    Returns:
        A line-buffered text stream to the former stdout.
    """
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


class Contest:
    """A compiled program and its last measured rate."""

    def __init__(self, name: str, configuration: Any, options: Any) -> None:
        """Import, build, compile and train for the first time, and measure the times.

        Args:
            name: name of the contestant's module.
            configuration: configuration to train.
            options: options of the command line.
        """
        self.configuration = configuration
        before = time.time()
        module = importlib.import_module(f"{options.package}.{name}")
        self.import_seconds = time.time() - before
        self.program: Program = module.prepare(configuration, options)
        before = time.time()
        self.program.compile()
        compiled = time.time()
        self.compile_seconds = compiled - before
        updates, seconds = self.train(FIRST)
        self.first_update_seconds = compiled - STARTED
        if not getattr(self.program, "compile_trains", False):
            self.first_update_seconds += seconds / updates
        self.versions = versions(module, self.program)

    def train(self, updates: int) -> tuple[int, float]:
        """Train for approximately `updates` updates; returns (number of updates, seconds)."""
        started = time.perf_counter()
        updates = self.program.run(updates)
        seconds = time.perf_counter() - started
        self.seconds_per_update = seconds / updates
        return updates, seconds

    def ready(self) -> dict[str, Any]:
        """The first answer."""
        return {
            "ready": True,
            "import_seconds": round(self.import_seconds, 3),
            "compile_seconds": round(self.compile_seconds, 3),
            "first_update_seconds": round(self.first_update_seconds, 3),
            "versions": self.versions,
            "device": device(),
            "devices": getattr(self.program, "devices", 1),
            "options": compiler_options(self.program),
        }

    def round(self, seconds: float) -> dict[str, Any]:
        """Run one round of approximately the given number of seconds."""
        for _ in range(TRIES):
            wanted = max(1, round(seconds / self.seconds_per_update))
            self.program.prepare_run(wanted)
            before = time.process_time()
            updates, measured = self.train(wanted)
            busy = time.process_time() - before
            if measured > LEAST_SHARE * seconds:
                break
        return {
            "updates": updates,
            "env_steps": updates * self.configuration.steps_per_update,
            "seconds": measured,
            "cpu_seconds": busy,
            "peak_bytes": peak_bytes(),
        }


def versions(module: ModuleType, program: Program) -> dict[str, str]:
    """Versions of JAX or PyTorch, of the contestant's packages, and of its `versions`."""
    used = [name for name in ("jax", "jaxlib", "torch") if name in sys.modules]
    packages = [*used, *getattr(module, "PACKAGES", ())]
    found = {name: importlib.metadata.version(name) for name in packages}
    return {**found, **getattr(program, "versions", {})}


def compiler_options(program: Program) -> str:
    """The compiler options of a contestant, from XLA_FLAGS and its program; "" for none."""
    own = getattr(program, "compiler_options", {})
    flags = os.environ.get("XLA_FLAGS", "") if "jax" in sys.modules else ""
    return " ".join([*flags.split(), *(f"{name}={value}" for name, value in own.items())])


def accelerator() -> Any:
    """The first device of JAX; None for a CPU, or if JAX is not imported."""
    jax = sys.modules.get("jax")
    if jax is None or jax.default_backend() == "cpu":
        return None
    return jax.devices()[0]


def device() -> str:
    """The kind of device that the contestant runs on."""
    found = accelerator()
    return "cpu" if found is None else str(found.device_kind)


def peak_bytes() -> int:
    """Peak memory in bytes of the accelerator, or of this process on a CPU."""
    found = accelerator()
    if found is not None and (stats := found.memory_stats()):
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parse(
    arguments: list[str] | None,
    read: Callable[[str], Any] = Configuration.from_json,
    package: str = "benchmarks.throughput.contestants",
) -> argparse.Namespace:
    """Parse the command line.

    Args:
        arguments: arguments of the command; None for those of this process.
        read: function that reads the configuration from JSON.
        package: package of the contestants' modules.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput.worker")
    parser.add_argument("name", help=f"name of a module in {package}")
    parser.add_argument("configuration", type=read, help="configuration as JSON")
    parser.add_argument("--purejaxrl", help="folder of PureJaxRL's ppo.py")
    parser.add_argument(
        "--devices", choices=("one", "all"), default="one", help="number of devices to train on"
    )
    parser.set_defaults(package=package)
    return parser.parse_args(arguments)


def serve(options: argparse.Namespace, answers: TextIO) -> int:
    """Answer requests until the end of stdin.

    Args:
        options: options of the command line.
        answers: text stream that the answers are written to.

    Returns:
        Exit status of the process: 1 after an error, 0 otherwise.
    """

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        contest = Contest(options.name, options.configuration, options)
        answer(contest.ready())
        for line in sys.stdin:
            answer(contest.round(float(json.loads(line)["seconds"])))
    except Unsupported as reason:
        answer({"unsupported": str(reason)})
    except Exception as error:
        traceback.print_exc()
        answer({"error": traceback.format_exception_only(error)[-1].strip()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(serve(parse(None), private_stdout()))
