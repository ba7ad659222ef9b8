"""Which agents run when: chunks of one width, a round of them at a time on all devices."""

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
    """A signal came before a round was finished."""


class Finished(NamedTuple):
    """A chunk that was trained; leaves are [agents, ...], on the host but for the state.

    Attributes:
        chunk: which.
        state: (i=None) -> TrainState of agent i of the chunk, or of all of them, cut out of the
            round's when it is asked for.
        metrics: Metrics [agents, U]
        returns: [agents, E] of the greedy episodes at the end.
        whole: [agents, E] bool: that episode came to its end.
    """

    chunk: Chunk
    state: Callable[..., TrainState]
    metrics: dict[str, np.ndarray]
    returns: np.ndarray
    whole: np.ndarray


class Schedule:
    """The chunks of a sweep: made when a group's turn comes, halved where memory runs out.

    Args:
        groups: from `group_agents`.
        devices: to spread over, all of one kind.
        batch_size: agents per device; None: as many as memory has room for and are fast.
        episodes: E of the final evaluation.
        env: as for `build`.
        chunks: of an earlier session, with the widths they had.
        done: the numbers of those that are finished.
        on_plan: called with all chunks before any of them runs.
        signals: that end a round; None for none.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        devices: Sequence[jax.Device],
        batch_size: int | None = None,
        *,
        episodes: int = 0,
        env: Any = None,
        chunks: Sequence[Chunk] = (),
        done: Iterable[int] = (),
        on_plan: Callable[[list[Chunk]], None] = lambda chunks: None,
        signals: Signals | None = None,
    ) -> None:
        self.groups, self.devices, self.batch_size = groups, tuple(devices), batch_size
        self.episodes, self.env = episodes, env
        self.plan = Plan(chunks, done, on_plan)
        self.programs, self.compile_seconds = 0, 0.0
        self.signals = signals or Signals()

    def run(
        self,
        watch: Callable[..., None] = lambda *_: None,
        on_layout: Callable[[Group, AgentsProgram, int], None] = lambda *_: None,
    ) -> Iterator[Finished]:
        """Train all that is not done, chunk by chunk.

        Args:
            watch: called between pieces of a round with (number of its agents, number of updates
                they made, the highest mean return of an agent in its latest updates).
            on_layout: called with a group, its program, and how many chunks are to be trained.

        Raises:
            ConfigError: a single agent does not fit into memory.
            Stopped: a signal came.
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
                program = None  # frees what it holds before the next is compiled
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
        """As wide as was asked for, or as fits."""
        agents = len(group.agents)
        share = -(-agents // len(self.devices))
        return self.fitting(group, agents, self.batch_size and min(self.batch_size, share))

    def fitting(self, group: Group, agents: int, widest: int | None) -> AgentsProgram:
        """The program of a group, as wide as memory has room for.

        Args:
            group: of agents that share it.
            agents: the number of them in the whole sweep.
            widest: agents per device to begin with; None: what is fast.

        Raises:
            ConfigError: a single agent does not fit into memory.
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
            asked = f"{memory.text(needed)} are needed, {memory.text(there)} are there"
            raise too_large(group, asked)
        return program

    def _halve(self, number: int, group: Group, width: int, reason: str) -> None:
        """Half the width for all that is left of a group."""
        if width == 1:
            raise too_large(group, reason)
        terminal.say(f"out of memory with {width} agents per device: going on with {width // 2}")
        self.plan.replace(self.plan.left(number), width // 2)

    def round(
        self, program: AgentsProgram, group: Group, chunks: Sequence[Chunk], watch: Callable
    ) -> Iterator[Finished]:
        """A chunk per device, side by side; the last is repeated where there are fewer."""
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
    """The agents of a chunk out of a round, or one of them."""
    mine = take(state, at)
    return mine if i is None else take(mine, i)


def too_large(group: Group, reason: str) -> ConfigError:
    """The error of a group of which a single agent is too much."""
    rows = group.static.num_envs * group.static.num_steps
    return ConfigError(
        f"one agent alone does not fit into the device's memory ({reason}); make its rollout of "
        f"num_envs x num_steps = {rows} smaller, or the network"
    )


def _padded(chunk: Chunk) -> tuple[int, ...]:
    return chunk.agents + chunk.agents[-1:] * (chunk.width - len(chunk.agents))
