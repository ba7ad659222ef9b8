"""Options of several processes that train one agent together, and checks of these options."""

import dataclasses
import ipaddress
import socket
import time
from typing import Any, NamedTuple

from ppo_jax.config import ConfigError
from ppo_jax.config.options import check_record, option
from ppo_jax.runs import terminal
from ppo_jax.runs.failures import RunFailed

HEARTBEAT = 100.0
# Time for which the processes wait for each other at the start, relative to the heartbeat.
START = 1.25
# Addresses that refer to all interfaces of a machine.
WILDCARDS = ("", "*", "0", "0.0.0.0", "::")


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """How this process finds the others. None of these options is kept with a run, which may
    continue on other machines."""

    distributed: bool = option(
        False,
        "train one agent together with other processes; the others are found through SLURM, "
        "Kubernetes, Cloud TPU or Open MPI, or through --coordinator",
    )
    coordinator: str | None = option(
        None, "address HOST:PORT at which process 0 listens for the other processes"
    )
    num_processes: int | None = option(
        None, "number of processes, if --coordinator is given", low=1
    )
    process_id: int | None = option(
        None, "number of this process, counted from 0, if --coordinator is given", low=0
    )
    heartbeat: float | None = option(
        None,
        "number of seconds without progress after which a process counts as lost and all processes "
        f"end; None: {HEARTBEAT:g}",
        low=2,
    )
    start_timeout: float | None = option(
        None,
        "number of seconds that the processes wait for each other at the start; None: "
        f"{START:g} times the heartbeat",
        low=1,
    )


class Place(NamedTuple):
    """The position of this process in the group.

    Attributes:
        coordinator: HOST:PORT of process 0; None if JAX detects it.
        size: number of processes; None if JAX detects it.
        rank: number of this process; None if JAX detects it.
        heartbeat: seconds without a sign of life after which a process is considered lost.
        start_timeout: seconds for which the processes wait for each other at the start.
    """

    coordinator: str | None
    size: int | None
    rank: int | None
    heartbeat: float
    start_timeout: float


def place_of(options: ClusterOptions) -> Place | None:
    """Check the options and derive the position of this process.

    Args:
        options: options of the command.

    Returns:
        The position; None for a single process.

    Raises:
        ConfigError: options contradict each other; the message gives their values and a remedy.
    """
    check_record(options)
    given = [
        f"--{f.name.replace('_', '-')}"
        for f in dataclasses.fields(options)
        if f.name != "distributed" and getattr(options, f.name) is not None
    ]
    if not options.distributed and options.coordinator is None:
        if given:
            raise ConfigError(
                f"{given[0]} is for several processes that train together; also give "
                "--distributed, or --coordinator HOST:PORT --num-processes P --process-id I"
            )
        return None
    size, rank = options.num_processes, options.process_id
    if options.coordinator is None and (size is not None or rank is not None):
        raise ConfigError(
            f"{given[0]} needs --coordinator HOST:PORT, the address at which process 0 listens; "
            "without these three options, SLURM, Kubernetes, Cloud TPU or Open MPI are detected"
        )
    if options.coordinator is not None:
        split_address(options.coordinator)
        missing = [n for n, x in (("num-processes", size), ("process-id", rank)) if x is None]
        if missing:
            raise ConfigError(
                f"--coordinator {options.coordinator} also needs --{missing[0]}: give each of the "
                "P processes --num-processes P and its own --process-id, from 0 to P - 1"
            )
    if size is not None and rank is not None and rank >= size:
        raise ConfigError(
            f"--process-id is {rank}, but with --num-processes {size} it must be 0 to {size - 1}"
        )
    heartbeat = options.heartbeat or HEARTBEAT
    start = options.start_timeout or START * heartbeat
    return Place(options.coordinator, size, rank, heartbeat, start)


def split_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT into (host, port); an IPv6 address is written in brackets.

    Raises:
        ConfigError: the text has another form, or the address refers to all interfaces.
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    whole = host.startswith("[") == host.endswith("]")
    plain = ":" not in bare or bare != host
    if not (colon and whole and plain and port.isascii() and port.isdecimal()):
        raise ConfigError(
            f"--coordinator is {text!r}; it must be HOST:PORT, such as node1:12321 or "
            "[2001:db8::1]:12321"
        )
    if bare in WILDCARDS or _is_every_address(bare):
        raise ConfigError(every_address(text))
    if not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator is {text!r}; the port must be 1 to 65535")
    return bare, int(port)


def every_address(text: str) -> str:
    """The error message for an address that refers to all interfaces of a machine."""
    return (
        f"--coordinator is {text!r}, which is not the address of one interface; give an address of "
        "process 0's machine that the others can reach: process 0 listens there and nowhere else"
    )


def _is_every_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a host name
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_unspecified or (mapped is not None and mapped.is_unspecified)


def check_address(place: Place) -> None:
    """Refuse an address that cannot be resolved, or at which process 0 cannot listen.

    The names of machines that are started together may become known only after some time. A machine
    that was restarted may still be known by its previous address, or its port may still be in use.

    Raises:
        ConfigError: the system's error, and a remedy.
        RunFailed: process 0 cannot listen there, which may be temporary.
    """
    if place.coordinator is None:
        return
    until, shown = time.monotonic() + place.start_timeout, False
    while True:
        host, port = split_address(place.coordinator)
        found = _resolved(host, port, place)
        if _is_every_address(str(found[4][0])):
            raise ConfigError(every_address(place.coordinator))
        why = _cannot_listen(found) if place.rank == 0 else ""
        if not why:
            return
        text = f"process 0 cannot listen at {place.coordinator} ({why})"
        if time.monotonic() > until:
            raise RunFailed(f"{text}; give a free port at an address of this machine")
        if not shown:
            terminal.complain(f"{text} yet; waiting {place.start_timeout:g} s (--start-timeout)")
        shown = True
        time.sleep(min(1.0, place.start_timeout / 4))


def _cannot_listen(found: Any) -> str:
    """The system's error when listening at an address; "" if it is possible.

    Args:
        found: address as returned by `socket.getaddrinfo`.
    """
    family, kind, protocol, _, address = found
    try:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _resolved(host: str, port: int, place: Place) -> Any:
    """The first address of a host; waits until its name is known."""
    until, shown = time.monotonic() + place.start_timeout, False
    while True:
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            if time.monotonic() > until or isinstance(error, UnicodeError):
                raise ConfigError(
                    f"--coordinator is {place.coordinator!r}, but the host name {host!r} cannot be "
                    f"resolved ({error}); give the name or the address of process 0's machine"
                ) from error
            if not shown:
                terminal.complain(
                    f"the host name {host!r} cannot be resolved yet; waiting up to "
                    f"{place.start_timeout:g} s (--start-timeout)"
                )
            shown = True
            time.sleep(min(1.0, place.start_timeout / 4))
