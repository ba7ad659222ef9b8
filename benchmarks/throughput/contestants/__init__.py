"""The contestants: each module trains one project's PPO on a Configuration.

A module has `prepare(configuration, options) -> Program`, and PACKAGES, the names of the
distributions whose versions tell what was measured. It raises Unsupported for what its project
cannot do. It imports nothing of ours but this package: it runs where only its project is installed.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.throughput.configurations import Configuration

# Updates of the first program and the first run. More than one: XLA inlines a loop of one trip,
# and the program of one update is compiled faster and runs differently.
FIRST = 4

Train = Callable[[], None]
ONE_AGENT = "trains one agent on one device"
ONE_DEVICE = "there is one device alone"


class Unsupported(Exception):
    """The project cannot do this configuration; the message says why."""


class Program(Protocol):
    """A project's PPO, ready to train.

    Attributes:
        compile_trains: whether `compile` cannot help training as well; False where it is missing.
        versions: what PACKAGES cannot tell; empty where it is missing.
        compiler_options: what its compiler is told, name -> value, beside XLA_FLAGS; empty where it
            is missing.
        devices: how many it trains on; 1 where it is missing.
    """

    def compile(self) -> None:
        """All that is done before the first update; the worker times it."""

    def prepare_run(self, updates: int) -> None:
        """What a run of about so many updates needs and what must not be timed."""

    def run(self, updates: int) -> int:
        """Train for about so many updates, wait for the end, return how many there were."""


class FixedLength:
    """A program whose number of updates is part of what is compiled.

    Its length follows the wanted one only when they are more than a factor of two apart, so that
    rounds of the same duration do not compile again and again.
    """

    def __init__(
        self,
        build: Callable[[int], Train],
        versions: dict[str, str] | None = None,
        compile_trains: bool = False,
        devices: int = 1,
    ) -> None:
        """Build nothing yet.

        Args:
            build: number of updates -> a function that trains for exactly so many, and waits.
            versions: see Program.
            compile_trains: see Program.
            devices: see Program.
        """
        self.build, self.versions, self.compile_trains = build, versions or {}, compile_trains
        self.devices = devices
        self.length = 0
        self.train: Train | None = None

    def compile(self) -> None:
        """Compile a short program."""
        self._set_length(FIRST)

    def prepare_run(self, updates: int) -> None:
        """Compile another one where this one is far from so long."""
        if not self.length / 2 <= updates <= self.length * 2:
            self._set_length(updates)

    def run(self, updates: int) -> int:
        """Train for the compiled number of updates."""
        del updates
        assert self.train is not None, "compile() comes first"
        self.train()
        return self.length

    def _set_length(self, updates: int) -> None:
        # The old program goes first: two of them need not fit into memory.
        self.train = None
        self.train, self.length = self.build(updates), updates


def devices_of(configuration: Configuration, wanted: str) -> int:
    """The number of devices that a project of JAX trains on by vmap and pmap, made where they are
    cores. To be called before JAX is used.

    Args:
        configuration: says how many agents.
        wanted: "one", or "all": one for each core of a CPU, or all accelerators.

    Raises:
        Unsupported: agents cannot be parted among all devices.
    """
    if wanted == "one":
        return 1
    if configuration.agents == 1:
        raise Unsupported(ONE_AGENT)
    found = all_devices()
    if found == 1:
        raise Unsupported(ONE_DEVICE)
    if configuration.agents % found:
        raise Unsupported(f"pmap wants as many agents on each of {found} devices")
    return found


def all_devices() -> int:
    """The number of all devices of JAX; on a CPU one is made for each core, unless the user has
    said how many. To be called before JAX is used."""
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    said = "host_platform_device_count" in flags or "JAX_NUM_CPU_DEVICES" in os.environ
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and not said:
        jax.config.update("jax_num_cpu_devices", cores())
    return len(jax.devices())


def cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def compile_training(train: Callable[[Any], Any], agents: int, devices: int = 1) -> Train:
    """Compile a whole training, from a key to whatever it returns.

    Args:
        train: key -> anything; a pure function of JAX.
        agents: more than one are vmapped over as many keys.
        devices: over more than one the agents are spread by pmap, as many on each.

    Returns:
        A function that runs it from the start, waits, and drops what it returned.
    """
    import jax

    key = jax.random.PRNGKey(0)
    if agents > 1:
        key, train = jax.random.split(key, agents), jax.vmap(train)
    if devices > 1:
        key = key.reshape(devices, agents // devices, *key.shape[1:])
        program = jax.pmap(train).lower(key).compile()
    else:
        program = jax.jit(train).lower(key).compile()

    def run() -> None:
        jax.block_until_ready(program(key))

    return run


def require(configuration: Configuration, envs: tuple[str, ...], why: str) -> None:
    """Refuse other environments, and many agents, on behalf of those who have one agent.

    Raises:
        Unsupported: with `why` for an environment that is not among `envs`.
    """
    if configuration.env not in envs:
        raise Unsupported(why)
    if configuration.agents > 1:
        raise Unsupported("trains one agent at a time")
