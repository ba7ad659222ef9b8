"""Workers of Ray: tasks on a cluster that is there, or on this machine alone."""

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

from ppo_jax.config import ConfigError
from ppo_jax.runs import terminal
from ppo_jax.runs.signals import ENDING
from ppo_jax.sweep.cluster import WorkerOptions
from ppo_jax.sweep.worker import Failed, Order, Outcome, Place, work

# Seconds between two looks at signals.
LOOK = 0.3
# Seconds that the head of a cluster may take to answer.
CONNECT = 10.0
# Sockets have names of at most 107 bytes, of which Ray takes most.
LONGEST = 18
# Settings of JAX that decide numbers, and go with the orders to other machines.
FORWARDED = ("JAX_", "XLA_FLAGS")
# A Ray of our own: nothing listens beyond this machine, and nobody else on it may send tasks.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def check(options: WorkerOptions) -> None:
    """Refuse where Ray is not installed.

    Args:
        options: as on the command line.

    Raises:
        ConfigError: what to install.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--cluster ray needs Ray; pip install 'ppo_jax[ray]'")


@contextlib.contextmanager
def opened(options: WorkerOptions, place: Place) -> Iterator["OnRay"]:
    """Workers of Ray, until the block ends.

    Args:
        options: as on the command line.
        place: what each worker is given.

    Raises:
        ConfigError: there is no cluster at the address, or no room for a worker.
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
        for number, handler in handlers.items():  # Ray sets its own
            signal.signal(number, handler)
        _check_room(ray, place, address)
        yield OnRay(ray, options, place)


def _reach(address: str) -> None:
    """Refuse an address where nobody answers; Ray would try for minutes.

    Raises:
        ConfigError: the address, and what the system says.
    """
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if match is None:  # "auto", or what Ray alone can say
        return
    try:
        socket.create_connection((match[1], int(match[2])), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot use Ray at {address}: {error}; write HOST:PORT of its head, which `ray start` "
            "prints, or auto"
        ) from error


@contextlib.contextmanager
def _alone(options: WorkerOptions, place: Place) -> Iterator[dict[str, Any]]:
    """Arguments for a Ray of our own, which ends with the block and leaves nothing."""
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
    """Say so where no machine has room for a worker."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if any(n.get("CPU", 0) >= place.cores and n.get("GPU", 0) >= place.gpus for n in nodes):
        return
    most = max((int(n.get("CPU", 0)) for n in nodes), default=0)
    gpus = max((int(n.get("GPU", 0)) for n in nodes), default=0)
    text = (
        f"no machine of the Ray cluster has {place.cores} CPU cores and {place.gpus} GPUs for a "
        f"worker (the most are {most} and {gpus}); give --cpus-per-worker or --gpus-per-worker"
    )
    if address is None:
        raise ConfigError(text)
    terminal.complain(f"warning: {text}, or add a machine: waiting for one")


class OnRay:
    """Orders as tasks of Ray, which returns their outcomes.

    Args:
        ray: the module, connected.
        options: as on the command line.
        place: what each worker is given.
    """

    name = "Ray"

    def __init__(self, ray: Any, options: WorkerOptions, place: Place) -> None:
        self.ray, self.room = ray, options.workers
        # Whether a task is tried again is decided, and said, in one place for all clusters.
        self.task = ray.remote(work).options(
            num_cpus=place.cores, num_gpus=place.gpus, max_retries=0, name="ppo_jax.sweep"
        )
        self.queue: deque[Order] = deque()
        self.running: dict[Any, int] = {}

    def submit(self, orders: Sequence[Order], folder: Path) -> None:
        """As `Launcher.submit`."""
        self.queue += orders
        self._start()

    def _start(self) -> None:
        while self.queue and (self.room is None or len(self.running) < self.room):
            order = self.queue.popleft()
            self.running[self.task.remote(order)] = order.number

    def ended(self) -> list[tuple[int, Outcome]]:
        """As `Launcher.ended`."""
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
        """As `Launcher.cancel`."""
        self.queue.clear()
        for task in self.running:
            with contextlib.suppress(Exception):
                self.ray.cancel(task, force=True)
        self.running.clear()


def _in_short(error: BaseException) -> str:
    """What Ray says of a task that returned nothing: of a traceback the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    line = lines[-1] if "Traceback" in str(error) else lines[0]
    return f"{type(error).__name__}: {line.partition('. ')[0]}"
