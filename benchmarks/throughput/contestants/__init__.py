"""The contestants: each module trains one project's PPO on a Configuration.

A module has `prepare(configuration, options) -> Program`, and PACKAGES, the names of the
distributions whose versions tell what was measured. It raises Unsupported for what its project
cannot do. It imports nothing of ours but this package: it runs where only its project is installed.
"""

from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.throughput.configurations import Configuration

# Updates of the first program and the first run. More than one: XLA inlines a loop of one trip,
# and the program of one update is compiled faster and runs differently.
FIRST = 4

Train = Callable[[], None]


class Unsupported(Exception):
    """The project cannot do this configuration; the message says why."""


class Program(Protocol):
    """A project's PPO, ready to train.

    Attributes:
        compile_trains: whether `compile` cannot help training as well; False where it is missing.
        versions: what PACKAGES cannot tell; empty where it is missing.
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
    ) -> None:
        """Build nothing yet.

        Args:
            build: number of updates -> a function that trains for exactly so many, and waits.
            versions: see Program.
            compile_trains: see Program.
        """
        self.build, self.versions, self.compile_trains = build, versions or {}, compile_trains
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


def compile_training(train: Callable[[Any], Any], agents: int) -> Train:
    """Compile a whole training, from a key to whatever it returns.

    Args:
        train: key -> anything; a pure function of JAX.
        agents: more than one are vmapped over as many keys.

    Returns:
        A function that runs it from the start, waits, and drops what it returned.
    """
    import jax

    key = jax.random.PRNGKey(0)
    if agents > 1:
        key, train = jax.random.split(key, agents), jax.vmap(train)
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
