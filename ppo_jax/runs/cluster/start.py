"""Joining the other processes before JAX's devices are initialised, with a time limit."""

import contextlib
import ctypes
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import jax

from ppo_jax.config import ConfigError
from ppo_jax.runs import terminal
from ppo_jax.runs.cluster import watch
from ppo_jax.runs.cluster.options import Place, check_address, split_address
from ppo_jax.runs.job import RunFailed

KNOWN = "SLURM, Kubernetes, Cloud TPU or Open MPI"
BY_HAND = "--coordinator HOST:PORT --num-processes P --process-id I"


def initialize(place: Place) -> Place:
    """Make JAX join the other processes; its devices are not initialised yet.

    Returns:
        The position of this process, completed by the scheduler.

    Raises:
        ConfigError: the other processes are unknown, an address is invalid, or JAX's devices have
            already been initialised.
        RunFailed: the others cannot be joined, which may be temporary.
    """
    if _started():
        raise ConfigError(
            "JAX has already initialised its devices, and can no longer join other processes; join "
            "them before any computation and before jax.devices() is called"
        )
    stated = place.coordinator is not None
    place = found(place)
    check_address(place)
    jax.config.update("jax_enable_preemption_service", False)  # it would intercept SIGTERM
    with _waiting(place):
        try:
            jax.distributed.initialize(
                place.coordinator,
                place.size,
                place.rank,
                cluster_detection_method="deactivate",  # the cluster has been detected above
                # These limits are longer than those of our watch, which reports the reason.
                initialization_timeout=math.ceil(place.start_timeout) + 30,
                heartbeat_timeout_seconds=math.ceil(3 * place.heartbeat),
                shutdown_timeout_seconds=math.ceil(place.heartbeat),
                coordinator_bind_address=place.coordinator if stated else bind_address(place),
            )
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            line = str(error).strip().partition("\n")[0]
            raise RunFailed(f"this process cannot join the others: {line}") from error
    return place


def found(place: Place) -> Place:
    """Complete the position of this process from the scheduler, if it was not given.

    Raises:
        ConfigError: JAX detects no scheduler.
    """
    if place.coordinator is not None:
        return place
    try:
        from jax._src.clusters import ClusterEnv

        said = ClusterEnv.auto_detect_unset_distributed_params(
            None, place.size, place.rank, None, None, math.ceil(place.start_timeout)
        )
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"--distributed found a scheduler, but not the other processes ({line}); give {BY_HAND}"
        ) from error
    address, size, rank, devices = said
    if address is None or size is None or rank is None:
        raise ConfigError(
            f"--distributed did not find {KNOWN}; start the processes with one of them, or give "
            f"each process {BY_HAND}"
        )
    if devices:  # one GPU per process of a machine, as JAX would choose
        os.environ.setdefault("JAX_LOCAL_DEVICE_IDS", ",".join(map(str, devices)))
    return place._replace(coordinator=address, size=int(size), rank=int(rank))


def bind_address(place: Place) -> str | None:
    """The address at which process 0 listens if the scheduler gave it; None for all interfaces.

    A machine may resolve its own name to an address that no other machine can reach (127.0.1.1 in
    /etc/hosts). It then listens at all its interfaces, which JAX chooses for None.
    """
    if place.coordinator is None or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    host, port = split_address(place.coordinator)
    addresses = {str(a[4][0]) for a in socket.getaddrinfo(host, port)}
    local = all(a.startswith("127.") or a == "::1" for a in addresses)
    if not local or host == "localhost" or host in addresses:  # the others use this address, too
        return place.coordinator
    if place.rank == 0:
        terminal.complain(
            f"this machine resolves its name {host!r} only to the address {min(addresses)}, which "
            f"no other machine can reach: process 0 listens at port {port} of all its addresses, "
            f"without a password; give {BY_HAND} to choose an address"
        )
    return None


def _started() -> bool:
    """Whether JAX's devices are initialised, so that no other process can be joined."""
    try:
        from jax._src import xla_bridge

        return bool(xla_bridge.backends_are_initialized())
    except (ImportError, AttributeError):  # `jax.distributed.initialize` checks this, too
        return False


@contextlib.contextmanager
def _waiting(place: Place) -> Iterator[None]:
    """End the process if the others do not join in time; JAX would abort it with a stack dump."""

    def give_up() -> None:
        terminal.show_cursor()
        with contextlib.suppress(OSError):
            os.write(2, f"error: {not_joined(place)}\n".encode())
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(1)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        give_up()

    watch.abort_with(aborted)
    # While JAX waits in C, Python's signal handler would not run.
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    timer = threading.Timer(place.start_timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if before is not None:
            signal.signal(signal.SIGINT, before)


def not_joined(place: Place) -> str:
    """A one-line message that describes which processes have not joined.

    Args:
        place: position of this process.
    """
    where = f"process {place.rank} of {place.size}"
    waited = f"{place.start_timeout:g} s"
    if place.rank == 0:
        return (
            f"{where} waited {waited} at {place.coordinator}, and not all other processes joined; "
            f"start {(place.size or 2) - 1} more with the same --coordinator and --num-processes, "
            "or give a longer --start-timeout"
        )
    host, port = split_address(place.coordinator or "")
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError as error:
        return (
            f"{where} waited {waited}, and process 0 does not listen at {place.coordinator} "
            f"({error.strerror or error}); it was not started, has ended, or has another address"
        )
    return (
        f"{where} waited {waited} together with process 0, and not all other processes joined; "
        "start the missing ones, or give a longer --start-timeout"
    )
