"""Training the rounds of a sweep on the workers of a cluster instead of on local devices.

The plan is the same as for a local sweep. A launcher sends orders to workers and returns their
outcomes. Only this process writes into the folder of the sweep.
"""

import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from ppo_jax import config as configs
from ppo_jax.config import ConfigError, commands, references
from ppo_jax.runs import provenance, terminal
from ppo_jax.runs.job import RunFailed
from ppo_jax.runs.signals import Signals
from ppo_jax.sweep.options import CLUSTERS as CLUSTERS
from ppo_jax.sweep.options import WorkerOptions as WorkerOptions
from ppo_jax.sweep.plan import Chunk, Plan, group_agents
from ppo_jax.sweep.program import CPU_WIDTH, even_width
from ppo_jax.sweep.schedule import Finished, Stopped
from ppo_jax.sweep.store import Spec
from ppo_jax.sweep.worker import (
    Arrays,
    Narrower,
    Order,
    Outcome,
    Place,
    Refused,
    Trained,
    devices_set,
    state_of,
)
from ppo_jax.train import build


class Launcher(Protocol):
    """Sends orders to workers and returns their outcomes.

    Attributes:
        name: name of the cluster, for messages.
    """

    name: str

    def submit(self, orders: Sequence[Order], folder: Path) -> None:
        """Queue orders for the workers; `folder` is the folder of the sweep."""

    def ended(self) -> list[tuple[int, Outcome]]:
        """The finished orders, as (number, outcome); waits briefly if there are none."""

    def cancel(self) -> None:
        """End and discard all orders."""


class Cluster(NamedTuple):
    """Workers that are available for the rounds of a sweep.

    Attributes:
        options: options of the command line.
        launcher: launcher that reaches the workers.
        place: resources of each worker.
    """

    options: WorkerOptions
    launcher: Launcher
    place: Place


def again(folder: Path, cluster: Cluster | None) -> str:
    """The command that continues a sweep on the same kind of workers.

    Args:
        folder: folder of the sweep.
        cluster: cluster whose workers trained it; None for this process.
    """
    words = [commands.command("sweep", "--resume"), shlex.quote(str(folder))]
    options = WorkerOptions() if cluster is None else cluster.options
    for field in dataclasses.fields(options):
        value, flag = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if value == field.default:
            continue
        if value is True:
            words.append(flag)
            continue
        given = value if isinstance(value, tuple) else (value,)
        words += [f"{flag} {shlex.quote(str(x))}" for x in given]
    return " ".join(words)


@contextlib.contextmanager
def opened(options: WorkerOptions) -> Iterator[Cluster | None]:
    """The cluster that the options select, until the block ends; None for this process alone.

    Args:
        options: options of the command line.

    Raises:
        ConfigError: options contradict each other, packages or programs are missing, or the cluster
            cannot be reached.
    """
    options.check()
    if options.cluster == "none":
        yield None
        return
    from ppo_jax.sweep import on_ray, on_slurm

    launchers: dict[str, Any] = {"ray": on_ray, "slurm": on_slurm}
    launchers[options.cluster].check(options)
    place = place_of(options)
    with launchers[options.cluster].opened(options, place) as launcher:
        yield Cluster(options, launcher, place)


def place_of(options: WorkerOptions) -> Place:
    """The resources of each worker: by default as many cores as this machine has.

    XLA compiles a program for one device differently from a program for several devices. A worker
    with one core therefore divides it into two devices if this machine has several, so that its
    results are the same.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    here = len(affinity(0)) if affinity else os.cpu_count() or 1
    cores = options.cpus_per_worker or here
    devices = max(cores, min(2, here))
    if options.gpus_per_worker:
        devices = options.gpus_per_worker
    elif (given := devices_set()) is not None:
        devices = given
    versions = provenance.versions()
    path = tuple(sys.path)
    return Place(str(Path.cwd()), path, cores, devices, options.gpus_per_worker, versions)


def check_names(spec: Spec) -> None:
    """Refuse environments, networks and algorithms that workers cannot import by name.

    Raises:
        ConfigError: an object cannot be sent; the message names it and states a remedy.
    """
    for config in spec.configs:
        for part in (config.env, config.policy, config.algorithm):
            if isinstance(part, str) and references.is_text(part):
                raise ConfigError(
                    f"{part} cannot be sent to another machine; put it into a module and name it "
                    "as package.module:Name"
                )


class Dispatch:
    """Trains the rounds of a sweep on a cluster.

    Args:
        spec: specification of the sweep.
        cluster: cluster whose workers train the rounds.
        width: agents per device; None for the width of a local sweep.
        plan: chunks of the sweep, with those that are finished.
        keep: value of --keep: "best", "all" or "none".
        folder: folder of the sweep.
        signals: signal handlers; a signal ends the sweep.
    """

    def __init__(
        self,
        spec: Spec,
        cluster: Cluster,
        *,
        width: int | None,
        plan: Plan,
        keep: str,
        folder: Path,
        signals: Signals,
    ) -> None:
        self.spec, self.cluster, self.width, self.plan = spec, cluster, width, plan
        self.keep, self.folder, self.signals = keep, folder, signals
        self.groups = group_agents(spec.configs, spec.seeds)
        self.programs, self.compile_seconds = 0, 0.0
        self.worked_on: list[str] = []
        self.orders: dict[int, Order] = {}
        self.tries: dict[int, int] = {}
        self.lost: list[tuple[Order, str]] = []
        self.shapes: dict[int, Any] = {}

    def run(
        self,
        watch: Callable[[int, int], None] = lambda agents, update: None,
        on_layout: Any = None,
    ) -> Iterator[Finished]:
        """Train all unfinished chunks and yield them in the order in which workers return them.

        Args:
            watch: function called with (0, 0) while no results arrive.
            on_layout: unused, because the layout depends on the workers.

        Raises:
            ConfigError: an error that would recur on every worker.
            Stopped: a signal arrived.
            RunFailed: rounds have failed more often than `retries` allows.
        """
        for number, group in enumerate(self.groups):
            if not self.plan.has(number):
                self.plan.add(number, group.agents, self._width(len(group.agents)))
        rounds = [o for n in range(len(self.groups)) for o in self._cut(self.plan.left(n))]
        if not rounds:
            return
        self._say_layout(rounds)
        launcher = self.cluster.launcher
        try:
            launcher.submit(rounds, self.folder)
            while self.orders:
                if self.signals.received:
                    raise Stopped
                ended = launcher.ended()
                for number, outcome in ended:
                    yield from self._take(number, outcome)
                if not ended and self.worked_on:  # before the first result, the rate is unknown
                    watch(0, 0)
        finally:
            launcher.cancel()
        if self.lost:
            raise self._failure()

    def _width(self, agents: int) -> int:
        """Agents per device: the same as for a local sweep on that number of devices."""
        place, workers = self.cluster.place, self.cluster.options.workers or 1
        if self.width is not None:
            return min(self.width, -(-agents // place.devices))
        # A GPU trains many agents as fast as few: the agents are divided among all workers.
        fast = -(-agents // (place.devices * workers)) if place.gpus else CPU_WIDTH
        return even_width(agents, fast, place.devices)

    def _cut(self, chunks: Sequence[Chunk]) -> list[Order]:
        """Orders with at most one chunk per device of a worker, all of one width."""
        found, left = [], [*chunks]
        while left:
            same = [c for c in left if c.width == left[0].width][: self.cluster.place.devices]
            left = [c for c in left if c not in same]
            found.append(self._order(tuple(same)))
        return found

    def _order(self, chunks: tuple[Chunk, ...]) -> Order:
        group = self.groups[chunks[0].group]
        agents = [a for c in chunks for a in c.agents]
        points = {a: a // len(self.spec.seeds) for a in agents}
        settings = {p: configs.to_json(self.spec.configs[p]) for p in points.values()}
        order = Order(
            number=1 + max(self.tries, default=-1),
            chunks=chunks,
            configs=settings,
            seeds={a: group.seeds[a] for a in agents},
            points=points,
            share=len(group.agents),
            episodes=self.spec.episodes,
            keep=self.keep,
            place=self.cluster.place,
        )
        self.orders[order.number], self.tries[order.number] = order, 0
        return order

    def _say_layout(self, rounds: Sequence[Order]) -> None:
        place, chunks = self.cluster.place, sum(len(o.chunks) for o in rounds)
        widths = " or ".join(dict.fromkeys(str(c.width) for o in rounds for c in o.chunks))
        device = "GPU" if place.gpus else "CPU device"
        terminal.say(
            f"layout: {_count(chunks, 'chunk')} of {widths} agent{'s' * (widths != '1')} in "
            f"{_count(len(rounds), 'round')} on {self.cluster.launcher.name}; each worker has "
            f"{_count(place.devices, device)}"
        )

    def _take(self, number: int, outcome: Outcome) -> Iterator[Finished]:
        """Handle the outcome of an order."""
        order = self.orders.pop(number)
        match outcome:
            case Trained():
                self.programs += outcome.programs
                self.compile_seconds += outcome.compile_seconds
                if outcome.device not in self.worked_on:
                    self.worked_on.append(outcome.device)
                for arrays in outcome.chunks:
                    yield self._finished(arrays)
                    self.plan.done.add(arrays.chunk.number)
            case Narrower():
                width = outcome.width
                terminal.say(
                    f"out of memory with {order.chunks[0].width} agents per device "
                    f"({outcome.reason}): continuing with {width}"
                )
                again = self._cut(self.plan.replace(order.chunks, width))
                self.cluster.launcher.submit(again, self.folder)
            case Refused():
                raise ConfigError(outcome.reason)
            case _:
                self._again(order, outcome.reason)

    def _again(self, order: Order, reason: str) -> None:
        """Retry a round, or give it up after the last retry."""
        self.tries[order.number] += 1
        tries, allowed = self.tries[order.number], self.cluster.options.retries
        if tries > allowed:
            self.lost.append((order, reason))
            terminal.say(f"{_agents(order)} failed ({reason}): no more retries")
            return
        terminal.say(f"{_agents(order)} failed ({reason}): retry {tries} of {allowed}")
        self.orders[order.number] = order
        self.cluster.launcher.submit([order], self.folder)

    def _failure(self) -> RunFailed:
        agents = sum(len(order.points) for order, _ in self.lost)
        return RunFailed(
            f"{_count(agents, 'agent')} could not be trained: {_count(len(self.lost), 'round')} "
            f"failed {_count(self.cluster.options.retries + 1, 'time')} (last: "
            f"{self.lost[-1][1]}); finished agents are kept. Continue with: "
            f"{again(self.folder, self.cluster)}"
        )

    def _finished(self, arrays: Arrays) -> Finished:
        def state(i: int) -> Any:
            return state_of(self._shapes(arrays.chunk), arrays.states[i])

        return Finished(arrays.chunk, state, arrays.metrics, arrays.returns, arrays.whole)

    def _shapes(self, chunk: Chunk) -> Any:
        """The shapes of the state of an agent in a group."""
        if chunk.group not in self.shapes:
            config = self.spec.configs[chunk.agents[0] // len(self.spec.seeds)]
            self.shapes[chunk.group] = jax.eval_shape(build(config).init, jax.random.key(0))
        return self.shapes[chunk.group]


def _agents(order: Order) -> str:
    agents = [*order.points]
    few = f"agent {agents[0]}" if len(agents) == 1 else f"agents {agents[0]} to {agents[-1]}"
    return f"the round of {few}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
