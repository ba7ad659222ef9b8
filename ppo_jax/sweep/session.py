"""A sweep with a folder: trains its chunks, stores them and writes the report."""

import dataclasses
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppo_jax import experiment
from ppo_jax.config import ConfigError, commands
from ppo_jax.envs import refuse_sweep
from ppo_jax.evaluate import warn_unfinished
from ppo_jax.runs import cache, manifest, memory, provenance, terminal
from ppo_jax.runs.signals import Signals
from ppo_jax.runs.terminal import Display
from ppo_jax.sweep.cluster import Cluster, Dispatch, again, check_names
from ppo_jax.sweep.keep import Keeper, scores_of
from ppo_jax.sweep.options import SweepOptions as SweepOptions
from ppo_jax.sweep.plan import Chunk, Group, Plan, group_agents
from ppo_jax.sweep.points import label
from ppo_jax.sweep.program import AgentsProgram, structure
from ppo_jax.sweep.publish import publish
from ppo_jax.sweep.results import Setting
from ppo_jax.sweep.schedule import Finished, Schedule, Stopped
from ppo_jax.sweep.store import (
    KEPT,
    MARK,
    Spec,
    Store,
    SweepDirectory,
    read_sessions,
    read_spec,
)
from ppo_jax.sweep.table import print_table
from ppo_jax.train import build


def run(
    spec: Spec, options: SweepOptions, directory: SweepDirectory, cluster: Cluster | None = None
) -> int:
    """Train the missing chunks, write the report, and confirm the best configuration.

    Args:
        spec: specification of the sweep.
        options: options of the sweep; a resumed sweep keeps its finished chunks.
        directory: folder of the sweep, locked by the caller.
        cluster: cluster whose workers train; None for this process.

    Returns:
        Exit code: 0, or 128 + the number of the signal that ended the sweep.
    """
    cache.use()
    path = directory.path
    with Signals() as signals:
        try:
            order = _Session(
                spec, options, path, options.resume is not None, signals=signals, cluster=cluster
            ).run()
            if options.confirm:
                fresh = confirmation(spec, order[0], options.confirm)
                terminal.say(
                    f"\nthe best configuration with {options.confirm} new seeds: {order[0].name}"
                )
                once = dataclasses.replace(options, confirm=0)
                _confirm(fresh, once, path / "confirm", signals, cluster=cluster)
                publish(Store(path, spec), options.threshold, {})
        except Stopped:
            terminal.say(
                f"stopped; finished agents are kept. Continue with: {again(path, cluster)}"
            )
            return 128 + (signals.received or 0)
    terminal.say(f"report: {path / 'report.html'}")
    if not signals.exit_code:
        terminal.print_next(_next_steps(spec, options, path, order[0].number))
    return signals.exit_code


def _next_steps(spec: Spec, options: SweepOptions, path: Path, best: int) -> dict[str, str]:
    """The commands that may follow a finished sweep, by name.

    Args:
        spec: specification of the sweep, which its results belong to.
        options: options of the sweep.
        path: folder of the sweep.
        best: number of the best configuration.
    """
    steps = {"plot": commands.command("plot", path)}
    if options.keep != "none":
        for agent in sorted((path / "agents").glob(f"configuration{best:04d}_seed*"))[:1]:
            watch = commands.command("evaluate", agent, "--gif", "episode.gif")
            steps = {"watch the best": watch, **steps}
    if len(spec.configs) > 1 and not options.confirm:
        again = ("sweep", "--resume", path, "--confirm", 10)
        steps["confirm the best"] = commands.command(*again)
    return steps


def _confirm(
    spec: Spec, options: SweepOptions, path: Path, signals: Signals, *, cluster: Cluster | None
) -> None:
    """Start or continue the sweep of the best configuration with fresh seeds."""
    with SweepDirectory(path) as directory:
        if directory.used and read_spec(path, spec.following)[0] != spec:
            raise ConfigError(
                f"{path} contains the best configuration with other seeds or values; move it away "
                f"to confirm with {len(spec.seeds)} seeds"
            )
        _Session(spec, options, path, directory.used, signals=signals, cluster=cluster).run()


def confirmation(spec: Spec, best: Setting, count: int) -> Spec:
    """The specification of the best configuration with seeds that were not used to choose it."""
    first = max(spec.seeds) + 1
    configs = tuple(r.config for r in best.results)
    return dataclasses.replace(spec, configs=configs, seeds=tuple(range(first, first + count)))


class _Session:
    """One session of a sweep, from its next chunk to its report."""

    def __init__(
        self,
        spec: Spec,
        options: SweepOptions,
        path: Path,
        resume: bool,
        *,
        signals: Signals,
        cluster: Cluster | None,
    ) -> None:
        self.spec, self.options, self.signals, self.cluster = spec, options, signals, cluster
        self.store = Store(path, spec)
        if resume:
            manifest.look(path, MARK)
        chunks, done = self.store.verified() if resume else ([], set())
        self.finished = {a for c in chunks if c.number in done for a in c.agents}
        if len(self.finished) < len(spec.configs) * len(spec.seeds) or not resume:
            kept = {name: getattr(options, name) for name in KEPT}
            self.store.describe(kept, cluster.options.cluster if cluster else "none")
        self.store.clean(done)
        self.store.rewrite_table(chunks, done)
        scores = self.store.scores(chunks, done)
        self.keeper = Keeper(path / "agents", spec, options.keep, scores)
        self.best = Best(spec, scores)
        self.schedule = self._schedule(chunks, done)
        sizes = [c.num_updates * c.num_envs * c.num_steps for c in spec.configs]
        self.sizes = [size for size in sizes for _ in spec.seeds]
        self.warned: set[str] = set()
        self.device = ""  # device of a cluster's workers

    def _schedule(self, chunks: list[Chunk], done: set[int]) -> Schedule | Dispatch:
        """The object that trains the chunks: on local devices, or on the workers of a cluster."""
        if self.cluster is not None:
            return Dispatch(
                self.spec,
                self.cluster,
                width=self.options.width,
                plan=Plan(chunks, done, self.store.save_plan),
                keep=self.options.keep,
                folder=self.store.path,
                signals=self.signals,
            )
        return Schedule(
            group_agents(self.spec.configs, self.spec.seeds),
            jax.devices(),
            self.options.width,
            episodes=self.spec.episodes,
            chunks=chunks,
            done=done,
            on_plan=self.store.save_plan,
            signals=self.signals,
        )

    def run(self) -> list[Setting]:
        """Train all chunks and return the settings, best first."""
        total = sum(self.sizes)
        started, before = time.perf_counter(), self._steps()
        self.progress = Display(total, before, self._title())
        self.before, self.rollout_steps = before, 0
        self.since = started if self.cluster else 0.0  # locally, compiling does not count
        with self.progress:
            for finished in self.schedule.run(self._show, self._layout):
                self._note_workers()
                scores = scores_of(finished)
                self.keeper.save(finished, scores)
                self.best.add(finished.chunk.agents, scores)
                self.store.save_chunk(finished)
                self.keeper.clean()
                self.finished |= {*finished.chunk.agents}
                self._warn(finished)
                self._show(0, 0)
                del finished  # frees the state of its round before the next one is trained
            self.keeper.clean()
        if before or self.cluster:  # restores the order of an uninterrupted sweep
            self.store.rewrite_table(self.schedule.plan.chunks, self.schedule.plan.done)
        seconds = time.perf_counter() - started
        compiling = self.schedule.compile_seconds
        # The workers of a cluster compile in parallel.
        training = seconds if self.cluster else seconds - compiling
        rate = (total - before) / max(training, 1e-9)
        session = {
            **provenance.record(*(c.matmul_precision for c in self.spec.configs)),
            **self._workers(),
            "compiled_programs": self.schedule.programs,
            "compile_seconds": round(compiling, 2),
            "train_seconds": round(training, 2),
            "env_steps": total - before,
            "env_steps_per_second": round(rate),
        }
        order = publish(self.store, self.options.threshold, session if total > before else {})
        print_table(order, self.options.threshold)
        return order

    def _workers(self) -> dict[str, Any]:
        """The fields of summary.json about a session on a cluster."""
        if self.cluster is None:
            return {}
        return {"cluster": self.cluster.options.cluster, "device": self.device}

    def _note_workers(self) -> None:
        """Record the device of a cluster's workers; warn if it differs from the first session."""
        device = ", ".join(getattr(self.schedule, "worked_on", ()))
        if device == self.device:
            return
        self.device = device
        first = read_sessions(self.store.path)[0]["device"]
        self.store.ran_on(device)
        if self.before and first != device:
            warnings.warn(
                f"device was {first} and is now {device}: agents trained from now on agree with "
                "those of an uninterrupted sweep only up to rounding",
                stacklevel=1,
            )

    def _layout(self, group: Group, program: AgentsProgram, chunks: int) -> None:
        """Say which device trains how many."""
        self.rollout_steps = group.static.num_envs * group.static.num_steps
        self.since = self.since or time.perf_counter()
        names = ", ".join(str(d) for d in program.devices[:8])
        more = f" and {len(program.devices) - 8} more" if len(program.devices) > 8 else ""
        rounds = -(-chunks // len(program.devices))
        terminal.say(
            f"layout: {chunks} chunks of {program.width} agents over {len(program.devices)} "
            f"device{'s' * (len(program.devices) > 1)} ({names}{more}), {rounds} "
            f"round{'s' * (rounds > 1)}; {program.bytes_needed / 2**20:,.0f} MiB per device"
        )

    def _steps(self) -> int:
        return sum(self.sizes[a] for a in self.finished)

    def _show(self, agents: int, update: int, training: float = math.nan) -> None:
        """Show the progress of the whole sweep.

        Args:
            agents: number of agents that are in training.
            update: number of updates that each of them has made.
            training: highest mean return of these agents in their latest updates.
        """
        step = self._steps() + agents * update * self.rollout_steps
        rate = (step - self.before) / (time.perf_counter() - self.since)
        detail = f"{len(self.finished)} of {len(self.sizes)} agents finished"
        detail += f", {agents} at update {update}" if agents else ""
        best = self.best.text(training)
        self.progress.show(step, rate, f"{detail}\n{best}" if best else detail)

    def _title(self) -> str:
        """The number of configurations and of seeds."""
        points, seeds = len(self.spec.configs), len(self.spec.seeds)
        return f"{points} configuration{'s' * (points > 1)} x {seeds} seed{'s' * (seeds > 1)}"

    def _warn(self, finished: Finished) -> None:
        """Warn once if an environment broke a promise, or if evaluation episodes were cut."""
        for metric, meaning in self.spec.promises.items():
            if metric not in self.warned and np.any(finished.metrics.get(metric, 0)):
                self.warned.add(metric)
                warnings.warn(meaning, stacklevel=1)
        if not finished.whole.all() and "whole" not in self.warned:
            self.warned.add("whole")
            warn_unfinished(finished.whole)


class Best:
    """The best agent so far, for the display.

    Args:
        spec: specification of the sweep.
        scores: agent -> score of the agents that are finished; NaN for one that diverged.
    """

    def __init__(self, spec: Spec, scores: dict[int, float]) -> None:
        self.spec, self.agent, self.score = spec, -1, -math.inf
        self.add([*scores], np.array([*scores.values()]))

    def add(self, agents: Sequence[int], scores: np.ndarray) -> None:
        """Take finished agents into account.

        Args:
            agents: numbers of the agents in the sweep.
            scores: [agents] scores of these agents; NaN for an agent that diverged.
        """
        for agent, score in zip(agents, scores, strict=True):
            if score > self.score:
                self.agent, self.score = agent, float(score)

    def text(self, training: float) -> str:
        """The best return so far and its configuration; "" while there is no return.

        Args:
            training: the best return of the agents in training, shown until one is finished.
        """
        if self.agent < 0:
            return f"best return in training {training:.4g}" if math.isfinite(training) else ""
        point, seed = divmod(self.agent, len(self.spec.seeds))
        name = label(self.spec.points[point]) if self.spec.varied else ""
        which = f"{name}, " if name else ""
        return f"best return {self.score:.4g} ({which}seed {self.spec.seeds[seed]})"


def check(spec: Spec, elsewhere: bool = False) -> None:
    """Check every configuration before anything is compiled or written.

    Args:
        spec: specification of the sweep.
        elsewhere: whether workers of a cluster train it, whose memory is unknown here.

    Raises:
        ConfigError, InvalidEnvironment: a configuration or an environment is invalid.
    """
    if elsewhere:
        check_names(spec)
    structures = set()
    for config in dict.fromkeys(spec.configs):
        program = build(config)
        refuse_sweep(program.env)
        if structure(config)[0] not in structures:
            structures.add(structure(config)[0])
            experiment.warn_of_the_network(config, program.env)
            if not elsewhere:
                memory.check(experiment.job_of(config, program))
