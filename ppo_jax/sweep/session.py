"""A sweep with a folder: trains its chunks, stores them and writes the report."""

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from ppo_jax import experiment
from ppo_jax.config import ConfigError
from ppo_jax.config.options import option
from ppo_jax.envs import refuse_sweep
from ppo_jax.evaluate import warn_unfinished
from ppo_jax.runs import cache, manifest, memory, provenance, terminal
from ppo_jax.runs.signals import Signals
from ppo_jax.runs.terminal import Display
from ppo_jax.sweep import results
from ppo_jax.sweep.cluster import Cluster, Dispatch, again, check_names
from ppo_jax.sweep.keep import KEEP, Keeper, scores_of
from ppo_jax.sweep.plan import Chunk, Group, Plan, group_agents
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
from ppo_jax.train import build


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """What a sweep does beside training; none of it changes an agent but the batch size, which is
    settled once."""

    run_dir: Path | None = option(None, "folder of the sweep; None: a new folder in sweeps/")
    resume: Path | None = option(None, "folder of a sweep to continue")
    overwrite: bool = option(False, "replace an existing sweep")
    batch_size: str = option("auto", "agents that one device trains at once, or auto")
    keep: str = option("best", "agents kept: of each point the best, all, none", choices=KEEP)
    confirm: int = option(0, "run the best point again with so many fresh seeds", low=0)
    threshold: float | None = option(None, "return to be reached; None: the environment's own")

    @property
    def width(self) -> int | None:
        """The batch size as a number; None for auto.

        Raises:
            ConfigError: it is neither.
        """
        if self.batch_size == "auto":
            return None
        if not self.batch_size.isdigit() or int(self.batch_size) < 1:
            raise ConfigError(f"batch_size is {self.batch_size!r}; it must be auto or >= 1")
        return int(self.batch_size)


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
                    f"\nthe best configuration with {options.confirm} fresh seeds: {order[0].name}"
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
    return signals.exit_code


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
        self.keeper = Keeper(path / "agents", spec, options.keep, self.store.scores(chunks, done))
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
        self.progress = Display(total, before)
        self.before, self.rollout_steps = before, 0
        self.since = started if self.cluster else 0.0  # locally, compiling does not count
        with self.progress:
            for finished in self.schedule.run(self._show, self._layout):
                self._note_workers()
                self.keeper.save(finished, scores_of(finished))
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

    def _show(self, agents: int, update: int) -> None:
        """Progress of the whole sweep; `agents` of a round have made `update` updates."""
        step = self._steps() + agents * update * self.rollout_steps
        rate = (step - self.before) / (time.perf_counter() - self.since)
        detail = f"agents {len(self.finished)} / {len(self.sizes)}"
        detail += f", {agents} at update {update}" if agents else ""
        self.progress.show(step, rate, detail)

    def _warn(self, finished: Finished) -> None:
        """Warn once if an environment broke a promise, or if evaluation episodes were cut."""
        for metric, meaning in self.spec.promises.items():
            if metric not in self.warned and np.any(finished.metrics.get(metric, 0)):
                self.warned.add(metric)
                warnings.warn(meaning, stacklevel=1)
        if not finished.whole.all() and "whole" not in self.warned:
            self.warned.add("whole")
            warn_unfinished(finished.whole)


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
            if not elsewhere:
                memory.check(experiment.job_of(config, program))


def print_table(order: list[Setting], threshold: float | None, rows: int = 10) -> None:
    """The best points, for a terminal."""
    several = len(order[0].results) > 1
    table = Table(*(("point", "env") if several else ("point",)), box=SIMPLE)
    for name in ("mean", "IQM [95 %]", "area", "steps to mark", "reached"):
        table.add_column(name, justify="right", no_wrap=True)
    for setting in order[:rows]:
        for r in setting.results:
            line = results.row(r, threshold)
            steps, share = line["steps_to_threshold"], line["share_reached"]
            low, high = line["ci95_low"], line["ci95_high"]
            table.add_row(
                *((setting.name, r.env) if several else (setting.name,)),
                f"{line['mean']}",
                f"{line['iqm']}" + (f" [{low}, {high}]" if low is not None else ""),
                f"{line['area']}",
                f"{steps:,}" if steps else "-",
                f"{share:.0%}" if share is not None else "-",
            )
    terminal.say(table)
