"""One contestant in a process of its own, asked for rounds over stdin.

python -m benchmarks.throughput.worker NAME CONFIGURATION_AS_JSON [--purejaxrl PATH] [--devices all]

Answers are lines of JSON on stdout: {"ready": true, ...} when it is compiled and has trained once,
then one line for each {"seconds": 2.0} it reads, until stdin ends. {"unsupported": why} and
{"error": what} end it at once. It imports the standard library and its contestant, nothing else:
it runs in the environment of the contestant, where ours is not installed.
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

# Set by the parent just before it starts this process, so that Python's own start counts.
STARTED = float(os.environ.get("BENCHMARK_STARTED", time.time()))
# A round that came out shorter than this share, since its rate was guessed, is done again.
LEAST_SHARE, TRIES = 0.4, 3


def private_stdout() -> TextIO:
    """Keep stdout for the answers: what libraries print goes to stderr.

    Returns:
        The former stdout, line by line.
    """
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


class Contest:
    """A compiled program and the rate it was last seen at."""

    def __init__(self, name: str, configuration: Any, options: Any) -> None:
        """Import, build, compile, and train for the first time, with a clock in hand.

        Args:
            name: of the contestant's module.
            configuration: what to train.
            options: of the command line.
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
        """Train for about so many updates: how many, and in what time."""
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
        """Train for about so long, and say how far it came."""
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
    """Of JAX and PyTorch where they are in use, of the contestant's packages, and its own words."""
    used = [name for name in ("jax", "jaxlib", "torch") if name in sys.modules]
    packages = [*used, *getattr(module, "PACKAGES", ())]
    found = {name: importlib.metadata.version(name) for name in packages}
    return {**found, **getattr(program, "versions", {})}


def compiler_options(program: Program) -> str:
    """What its compiler was told, by XLA_FLAGS and by itself; "" for nothing."""
    own = getattr(program, "compiler_options", {})
    flags = os.environ.get("XLA_FLAGS", "") if "jax" in sys.modules else ""
    return " ".join([*flags.split(), *(f"{name}={value}" for name, value in own.items())])


def accelerator() -> Any:
    """JAX's first device, if it is in use and is not the CPU; or None."""
    jax = sys.modules.get("jax")
    if jax is None or jax.default_backend() == "cpu":
        return None
    return jax.devices()[0]


def device() -> str:
    """What it runs on."""
    found = accelerator()
    return "cpu" if found is None else str(found.device_kind)


def peak_bytes() -> int:
    """Most memory ever in use: the accelerator's, or that of this process."""
    found = accelerator()
    if found is not None and (stats := found.memory_stats()):
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parse(
    arguments: list[str] | None,
    read: Callable[[str], Any] = Configuration.from_json,
    package: str = "benchmarks.throughput.contestants",
) -> argparse.Namespace:
    """The command line.

    Args:
        arguments: of it; None: those of this process.
        read: what the configuration is read by.
        package: of the contestants' modules.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput.worker")
    parser.add_argument("name", help=f"module of {package}")
    parser.add_argument("configuration", type=read, help="as JSON")
    parser.add_argument("--purejaxrl", help="folder with PureJaxRL's ppo.py")
    parser.add_argument("--devices", choices=("one", "all"), default="one")
    parser.set_defaults(package=package)
    return parser.parse_args(arguments)


def serve(options: argparse.Namespace, answers: TextIO) -> int:
    """Answer until stdin ends.

    Args:
        options: of the command line.
        answers: where they go.

    Returns:
        The exit status.
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
