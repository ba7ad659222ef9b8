"""What several processes that train one agent together are told, and what of it is refused."""

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
# Of the heartbeat: how long the processes wait for each other at the start.
START = 1.25
# Addresses that stand for every interface of a machine.
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
    """Where this process stands among the others.

    Attributes:
        coordinator: HOST:PORT of process 0; None: JAX finds out.
        size: number of processes; None: JAX finds out.
        rank: which of them this is; None: JAX finds out.
        heartbeat: seconds.
        start_timeout: seconds.
    """

    coordinator: str | None
    size: int | None
    rank: int | None
    heartbeat: float
    start_timeout: float


def place_of(options: ClusterOptions) -> Place | None:
    """What the options say, if they belong together.

    Args:
        options: of the command.

    Returns:
        None for a process that works alone.

    Raises:
        ConfigError: they contradict each other; what was given, and what to do.
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
                f"{given[0]} is for several processes that train together; give --distributed, or "
                "--coordinator HOST:PORT --num-processes P --process-id I, too"
            )
        return None
    size, rank = options.num_processes, options.process_id
    if options.coordinator is None and (size is not None or rank is not None):
        raise ConfigError(
            f"{given[0]} needs --coordinator HOST:PORT, the address at which process 0 listens; "
            "without these three, SLURM, Kubernetes, Cloud TPU or Open MPI say who is who"
        )
    if options.coordinator is not None:
        split_address(options.coordinator)
        missing = [n for n, x in (("num-processes", size), ("process-id", rank)) if x is None]
        if missing:
            raise ConfigError(
                f"--coordinator {options.coordinator} needs --{missing[0]}, too: give each of the "
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
    """HOST:PORT as (host, port); an IPv6 address is written in brackets.

    Raises:
        ConfigError: it is neither, or stands for every interface of a machine.
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
    """Why an address is refused that stands for every interface of a machine."""
    return (
        f"--coordinator is {text!r}, which names no single address; give one of process 0's "
        "machine that the others can reach: process 0 listens there and nowhere else"
    )


def _is_every_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a name
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_unspecified or (mapped is not None and mapped.is_unspecified)


def check_address(place: Place) -> None:
    """Refuse an address that has no machine, or at which process 0 cannot listen.

    The names of machines that are started together may take a while to be known, and a machine that
    is started again may be known by its last address, or have a port that is not free yet.

    Raises:
        ConfigError: what the system says, and what to do.
        RunFailed: process 0 cannot listen there, which may pass.
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
    """What the system says against listening at an address; "" if it can be done.

    Args:
        found: of `socket.getaddrinfo`.
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
    """The first address of a host, once its name is known."""
    until, shown = time.monotonic() + place.start_timeout, False
    while True:
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            if time.monotonic() > until or isinstance(error, UnicodeError):
                raise ConfigError(
                    f"--coordinator is {place.coordinator!r}, but no machine has the name {host!r} "
                    f"({error}); give the name or the address of process 0's machine"
                ) from error
            if not shown:
                terminal.complain(
                    f"no machine has the name {host!r} yet; waiting {place.start_timeout:g} s for "
                    "it (--start-timeout)"
                )
            shown = True
            time.sleep(min(1.0, place.start_timeout / 4))
