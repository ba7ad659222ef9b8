"""The contestants: each module trains PPO of one project on a Configuration.

A module has a function `prepare(configuration, options) -> Program` and the names PACKAGES of
packages whose versions are recorded. It raises Unsupported for configurations that its project
cannot train. Of this repository it imports this package and `configurations` only, because
ppo_jax is not installed in the environment of the peers.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.throughput.configurations import Configuration

# Number of updates of the first program and the first run. XLA inlines a loop of one iteration, so
# that the program of one update would compile faster and run differently.
FIRST = 4

Train = Callable[[], None]
ONE_AGENT = "trains one agent on one device"
ONE_DEVICE = "there is only one device"


class Unsupported(Exception):
    """The project cannot train this configuration; the message is the reason."""


class Program(Protocol):
    """PPO of one project for one configuration; all attributes are optional.

    Attributes:
        compile_trains: whether `compile` also trains for some updates; False by default.
        versions: versions that PACKAGES does not cover; empty by default.
        compiler_options: options of the compiler besides XLA_FLAGS, name -> value; empty by
            default.
        devices: number of devices; 1 by default.
    """

    def compile(self) -> None:
        """Do everything that precedes the first update; the worker measures the time."""

    def prepare_run(self, updates: int) -> None:
        """Prepare a run of approximately `updates` updates; the time is not measured."""

    def run(self, updates: int) -> int:
        """Train for approximately `updates` updates and wait; returns the exact number."""


class FixedLength:
    """A program that is compiled for a fixed number of updates.

    It is compiled again only if the requested number differs by more than a factor of two, so that
    rounds of similar duration use the same program.
    """

    def __init__(
        self,
        build: Callable[[int], Train],
        versions: dict[str, str] | None = None,
        compile_trains: bool = False,
        devices: int = 1,
    ) -> None:
        """Store the arguments; `compile` builds the program.

        Args:
            build: function of a number of updates that returns a function, which trains for exactly
                that number and waits.
            versions: attribute of Program.
            compile_trains: attribute of Program.
            devices: attribute of Program.
        """
        self.build, self.versions, self.compile_trains = build, versions or {}, compile_trains
        self.devices = devices
        self.length = 0
        self.train: Train | None = None

    def compile(self) -> None:
        """Compile a short program."""
        self._set_length(FIRST)

    def prepare_run(self, updates: int) -> None:
        """Compile another program if the length of this one differs too much."""
        if not self.length / 2 <= updates <= self.length * 2:
            self._set_length(updates)

    def run(self, updates: int) -> int:
        """Train for the compiled number of updates."""
        del updates
        assert self.train is not None, "compile() has to be called before run()"
        self.train()
        return self.length

    def _set_length(self, updates: int) -> None:
        # The old program is deleted first, because two programs may not fit into memory.
        self.train = None
        self.train, self.length = self.build(updates), updates


def devices_of(configuration: Configuration, wanted: str) -> int:
    """The number of devices for a JAX project that trains many agents with vmap and pmap.

    CPU devices are created as needed, so the function has to be called before JAX is used.

    Args:
        configuration: configuration to train, with the number of agents.
        wanted: "one" for one device, "all" for one per core of a CPU or all accelerators.

    Raises:
        Unsupported: the agents cannot be distributed evenly over all devices.
    """
    if wanted == "one":
        return 1
    if configuration.agents == 1:
        raise Unsupported(ONE_AGENT)
    found = all_devices()
    if found == 1:
        raise Unsupported(ONE_DEVICE)
    if configuration.agents % found:
        raise Unsupported(f"pmap requires the same number of agents on each of {found} devices")
    return found


def all_devices() -> int:
    """The number of all devices of JAX.

    On a CPU one device is created per core, unless the environment sets their number. The function
    has to be called before JAX is used.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    said = "host_platform_device_count" in flags or "JAX_NUM_CPU_DEVICES" in os.environ
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and not said:
        jax.config.update("jax_num_cpu_devices", cores())
    return len(jax.devices())


def cores() -> int:
    """The number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def compile_training(train: Callable[[Any], Any], agents: int, devices: int = 1) -> Train:
    """Compile a whole training run as a function of a PRNG key.

    Args:
        train: pure function of a key that trains an agent.
        agents: number of agents; several are vmapped over their keys.
        devices: number of devices that the agents are distributed over by pmap.

    Returns:
        A function that runs the training from its start and waits for the end.
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
    """Refuse other environments, and more than one agent.

    Args:
        configuration: configuration to train.
        envs: supported environments.
        why: reason why other environments are not supported.

    Raises:
        Unsupported: the environment is not in `envs`, or there are several agents.
    """
    if configuration.env not in envs:
        raise Unsupported(why)
    if configuration.agents > 1:
        raise Unsupported("trains one agent at a time")
