"""Ray workers: tasks on an existing Ray cluster, or on a private one on this machine."""

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ppo_jax.config import ConfigError, installation
from ppo_jax.runs import terminal
from ppo_jax.runs.signals import ENDING
from ppo_jax.sweep.cluster import WorkerOptions
from ppo_jax.sweep.worker import Failed, Order, Outcome, Place, work

# Seconds between two checks for signals.
LOOK = 0.3
# Seconds within which the head of a cluster must respond.
CONNECT = 10.0
# The path of a socket has at most 107 bytes, and Ray uses most of them.
LONGEST = 18
# Prefixes of environment variables that affect numerical results and are passed on to workers.
FORWARDED = ("JAX_", "XLA_FLAGS")
# Setting of a private Ray cluster, so that it listens on the loopback interface only.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def check(options: WorkerOptions) -> None:
    """Refuse --cluster ray if Ray is not installed.

    Args:
        options: options of the command line.

    Raises:
        ConfigError: Ray is not installed; the message states the command that installs it.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"--cluster ray needs Ray: {installation.command('[ray]')}")


@contextlib.contextmanager
def opened(options: WorkerOptions, place: Place) -> Iterator["OnRay"]:
    """Ray workers, until the block ends.

    Args:
        options: options of the command line.
        place: resources of each worker.

    Raises:
        ConfigError: there is no cluster at the address, or no machine has enough resources.
    """
    address = options.ray_address or os.environ.get("RAY_ADDRESS")
    address = None if address == "local" else address
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    handlers = {s: signal.getsignal(s) for s in ENDING}
    with contextlib.ExitStack() as stack:
        if address is None:
            arguments = stack.enter_context(_alone(options, place))
        else:
            _reach(address)
            forwarded = {n: v for n, v in os.environ.items() if n.startswith(FORWARDED)}
            arguments = {"address": address, "runtime_env": {"env_vars": forwarded}}
        import ray

        stack.callback(ray.shutdown)
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **arguments)
        except Exception as error:
            where = "on this machine" if address is None else f"at {address}"
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"cannot use Ray {where}: {type(error).__name__}: {reason}"
            ) from error
        for number, handler in handlers.items():  # Ray installs its own handlers
            signal.signal(number, handler)
        _check_room(ray, place, address)
        yield OnRay(ray, options, place)


def _reach(address: str) -> None:
    """Refuse an address that does not respond, because Ray would retry for minutes.

    Raises:
        ConfigError: the connection fails; the message states the address and the error.
    """
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if match is None:  # "auto", or another form that only Ray understands
        return
    try:
        socket.create_connection((match[1], int(match[2])), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot use Ray at {address}: {error}; give HOST:PORT of its head, as printed by "
            "`ray start`, or auto"
        ) from error


@contextlib.contextmanager
def _alone(options: WorkerOptions, place: Place) -> Iterator[dict[str, Any]]:
    """Arguments for a private Ray cluster, which ends with the block and leaves no files."""
    workers = options.workers or max(1, (os.cpu_count() or 1) // place.cores)
    short = len(tempfile.gettempdir()) <= LONGEST
    folder = tempfile.mkdtemp(prefix="ppo_jax-ray-", dir=None if short else "/tmp")
    ours = {
        LOOPBACK: "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield {
            "address": "local",
            "num_cpus": workers * place.cores,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
        }
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder, ignore_errors=True)


def _check_room(ray: Any, place: Place, address: str | None) -> None:
    """Refuse, or warn, if no machine has the resources of a worker."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if any(n.get("CPU", 0) >= place.cores and n.get("GPU", 0) >= place.gpus for n in nodes):
        return
    most = max((int(n.get("CPU", 0)) for n in nodes), default=0)
    gpus = max((int(n.get("GPU", 0)) for n in nodes), default=0)
    text = (
        f"no machine of the Ray cluster has {place.cores} CPU cores and {place.gpus} GPUs for a "
        f"worker (the largest numbers are {most} and {gpus}); give --cpus-per-worker or "
        "--gpus-per-worker"
    )
    if address is None:
        raise ConfigError(text)
    terminal.complain(f"warning: {text}, or add a machine; waiting for one")


class OnRay:
    """Sends orders as Ray tasks, whose results are the outcomes.

    Args:
        ray: the connected ray module.
        options: options of the command line.
        place: resources of each worker.
    """

    name = "Ray"

    def __init__(self, ray: Any, options: WorkerOptions, place: Place) -> None:
        self.ray, self.room = ray, options.workers
        # Ray does not retry tasks, because `Dispatch` does so for all kinds of clusters.
        self.task = ray.remote(work).options(
            num_cpus=place.cores, num_gpus=place.gpus, max_retries=0, name="ppo_jax.sweep"
        )
        self.queue: deque[Order] = deque()
        self.running: dict[Any, int] = {}

    def submit(self, orders: Sequence[Order], folder: Path) -> None:
        """Queue orders; see `Launcher.submit`."""
        self.queue += orders
        self._start()

    def _start(self) -> None:
        while self.queue and (self.room is None or len(self.running) < self.room):
            order = self.queue.popleft()
            self.running[self.task.remote(order)] = order.number

    def ended(self) -> list[tuple[int, Outcome]]:
        """Return finished orders; see `Launcher.ended`."""
        ready, _ = self.ray.wait([*self.running], num_returns=1, timeout=LOOK)
        found: list[tuple[int, Outcome]] = []
        for task in ready:
            number = self.running.pop(task)
            try:
                found.append((number, self.ray.get(task)))
            except self.ray.exceptions.RayError as error:
                found.append((number, Failed(_in_short(error))))
        self._start()
        return found

    def cancel(self) -> None:
        """End all tasks; see `Launcher.cancel`."""
        self.queue.clear()
        for task in self.running:
            with contextlib.suppress(Exception):
                self.ray.cancel(task, force=True)
        self.running.clear()


def _in_short(error: BaseException) -> str:
    """Ray's error for a task without a result, in one line: the last line of a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    line = lines[-1] if "Traceback" in str(error) else lines[0]
    return f"{type(error).__name__}: {line.partition('. ')[0]}"
