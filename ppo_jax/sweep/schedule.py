"""Training the chunks of a sweep on local devices, in rounds of one chunk per device."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax.config import ConfigError
from ppo_jax.runs import loop, memory, terminal
from ppo_jax.runs.job import Callback
from ppo_jax.runs.record import InMemory
from ppo_jax.runs.signals import Signals
from ppo_jax.sweep.plan import Chunk as Chunk
from ppo_jax.sweep.plan import Group as Group
from ppo_jax.sweep.plan import Plan
from ppo_jax.sweep.plan import group_agents as group_agents
from ppo_jax.sweep.program import AgentsProgram, compile_program, fit, job_of, release, take
from ppo_jax.types import TrainState


class Stopped(Exception):
    """A signal arrived before a round was finished."""


class Finished(NamedTuple):
    """A trained chunk; leaves are [agents, ...], on the host except for the state.

    Attributes:
        chunk: the chunk.
        state: function (i=None) -> TrainState of agent i of the chunk, or of all its agents, which
            is selected from the round's state when the function is called.
        metrics: Metrics [agents, U].
        returns: [agents, E] returns of the greedy episodes at the end.
        whole: [agents, E] bool, whether the episode ended by itself.
    """

    chunk: Chunk
    state: Callable[..., TrainState]
    metrics: dict[str, np.ndarray]
    returns: np.ndarray
    whole: np.ndarray


class Schedule:
    """Creates and trains the chunks of a sweep, and halves their width if memory runs out.

    Args:
        groups: groups of agents, from `group_agents`.
        devices: devices of one kind, over which the agents are distributed.
        agents_per_device: number of agents that a device trains at the same time; None for a fast
            number that fits in memory.
        episodes: number of evaluation episodes E at the end.
        env: environment, as for `build`.
        chunks: chunks of an earlier session, with their widths.
        done: numbers of the finished chunks.
        on_plan: function called with all chunks before any of them is trained.
        signals: signal handlers; a signal ends the round. None ignores signals.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        devices: Sequence[jax.Device],
        agents_per_device: int | None = None,
        *,
        episodes: int = 0,
        env: Any = None,
        chunks: Sequence[Chunk] = (),
        done: Iterable[int] = (),
        on_plan: Callable[[list[Chunk]], None] = lambda chunks: None,
        signals: Signals | None = None,
    ) -> None:
        self.groups, self.devices, self.agents_per_device = (
            groups,
            tuple(devices),
            agents_per_device,
        )
        self.episodes, self.env = episodes, env
        self.plan = Plan(chunks, done, on_plan)
        self.programs, self.compile_seconds = 0, 0.0
        self.signals = signals or Signals()

    def run(
        self,
        watch: Callable[..., None] = lambda *_: None,
        on_layout: Callable[[Group, AgentsProgram, int], None] = lambda *_: None,
    ) -> Iterator[Finished]:
        """Train all unfinished chunks and yield them.

        Args:
            watch: function called during a round with (number of its agents, number of updates
                they made, the highest mean return of an agent in its latest updates).
            on_layout: function called with a group, its program and the number of chunks to train.

        Raises:
            ConfigError: a single agent does not fit in memory.
            Stopped: a signal arrived.
        """
        for number, group in enumerate(self.groups):
            program = None
            if not self.plan.has(number):
                program = self._first_program(group)
                self.plan.add(number, group.agents, program.width)
                on_layout(group, program, len(self.plan.left(number)))
            while todo := self.plan.left(number):
                width = todo[0].width
                same = [c for c in todo if c.width == width]
                try:
                    if program is None or program.width != width:
                        program = self._compile(group, width)
                        on_layout(group, program, len(same))
                    yield from self.round(program, group, same[: len(self.devices)], watch)
                    continue
                except jax.errors.JaxRuntimeError as error:
                    if not memory.is_exhausted(error):
                        raise
                    reason = str(error).splitlines()[0]
                program = None  # frees its memory before the next one is compiled
                release()
                self._halve(number, group, width, reason)

    def _compile(self, group: Group, width: int) -> AgentsProgram:
        started = time.perf_counter()
        with terminal.status("compiling"):
            program = compile_program(
                group.static, self.env, width, self.devices, episodes=self.episodes
            )
        self.programs += 1
        self.compile_seconds += time.perf_counter() - started
        return program

    def _first_program(self, group: Group) -> AgentsProgram:
        """The first program of a group, with the given or the largest fitting width."""
        agents = len(group.agents)
        share = -(-agents // len(self.devices))
        return self.fitting(
            group, agents, self.agents_per_device and min(self.agents_per_device, share)
        )

    def fitting(self, group: Group, agents: int, widest: int | None) -> AgentsProgram:
        """The program of a group with the largest width that fits in memory.

        Args:
            group: agents that share the program.
            agents: number of these agents in the whole sweep.
            widest: first width to try; None for the fastest one.

        Raises:
            ConfigError: a single agent does not fit in memory.
        """
        try:
            program = fit(agents, functools.partial(self._compile, group), self.devices, widest)
        except jax.errors.JaxRuntimeError as error:
            if not memory.is_exhausted(error):
                raise
            raise too_large(group, str(error).splitlines()[0]) from error
        there = memory.available(self.devices[0])
        needed = program.bytes_needed
        if program.width == 1 and there is not None and needed > there:
            needs = f"{memory.text(needed)} are needed, {memory.text(there)} are available"
            raise too_large(group, needs)
        return program

    def _halve(self, number: int, group: Group, width: int, reason: str) -> None:
        """Halve the width of all unfinished chunks of a group."""
        if width == 1:
            raise too_large(group, reason)
        terminal.say(f"out of memory with {width} agents per device: continuing with {width // 2}")
        self.plan.replace(self.plan.left(number), width // 2)

    def round(
        self, program: AgentsProgram, group: Group, chunks: Sequence[Chunk], watch: Callable
    ) -> Iterator[Finished]:
        """Train one chunk per device; the last chunk is repeated on the remaining devices."""
        chunks = [*chunks]
        padded = chunks + [chunks[-1]] * (len(self.devices) - len(chunks))
        rows = [a for c in padded for a in _padded(c)]
        seeds = np.array([group.seeds[a] for a in rows], np.uint32)
        floats = {
            name: np.array([group.floats[a][name] for a in rows], np.float32)
            for name in group.floats[rows[0]]
        }
        agents = sum(len(c.agents) for c in chunks)
        updates = group.static.num_updates
        job, record = job_of(program, seeds, floats, updates), InMemory()
        show: Callback = lambda progress, state: watch(agents, progress.update, _highest(record))
        ended = loop.run(job, record, signals=self.signals, callbacks=[show], chunk=program.advance)
        if record.saved < updates:
            raise Stopped
        state, metrics = record.state, record.metrics
        none = {"returns": np.zeros((len(rows), 0)), "whole": np.ones((len(rows), 0), bool)}
        returns, whole = (none | ended.summary)["returns"], (none | ended.summary)["whole"]
        for i, chunk in enumerate(chunks):
            at = slice(i * program.width, i * program.width + len(chunk.agents))
            log = {name: x[at] for name, x in metrics.items()}
            mine = functools.partial(_cut, state, at)
            yield Finished(chunk, mine, log, returns[at], whole[at])
            self.plan.done.add(chunk.number)


def _highest(record: InMemory) -> float:
    """The highest mean return of an agent in its latest updates; NaN where no episode ended."""
    returns = record.parts[-1].get("episode_return") if record.parts else None
    if returns is None:
        return math.nan
    ended = np.isfinite(returns)
    count = ended.sum(axis=-1)
    means = np.where(ended, returns, 0.0).sum(axis=-1) / np.maximum(count, 1)
    return float(means[count > 0].max()) if np.any(count) else math.nan


def _cut(state: TrainState, at: slice, i: int | None = None) -> TrainState:
    """Select the agents of a chunk, or one of them, from the state of a round."""
    mine = take(state, at)
    return mine if i is None else take(mine, i)


def too_large(group: Group, reason: str) -> ConfigError:
    """The error for a group of which a single agent does not fit in memory."""
    rows = group.static.num_envs * group.static.num_steps
    return ConfigError(
        f"one agent alone does not fit into the memory of the device ({reason}); reduce num_envs x "
        f"num_steps = {rows}, or use a smaller network"
    )


def _padded(chunk: Chunk) -> tuple[int, ...]:
    return chunk.agents + chunk.agents[-1:] * (chunk.width - len(chunk.agents))
