"""A run on disk: chunks of compiled updates, and everything that happens between them.

Nothing inside the compiled program knows of progress, logs, checkpoints or signals: the host
loops over chunks of at most a few seconds, and looks after all that in between.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import config as configs
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.config.options import check_record, option
from ppo_jax.envs import HostEnv
from ppo_jax.evaluate import evaluate, warn_unfinished
from ppo_jax.runs import cache, curves, metrics_log, provenance, terminal, trackers
from ppo_jax.runs.checkpoint import CheckpointError, write_json
from ppo_jax.runs.folder import RunDirectory, checkpoints_of, new_directory, write_config
from ppo_jax.runs.terminal import Progress
from ppo_jax.train import Program, build
from ppo_jax.types import Metrics, TrainState

CHUNK_SECONDS = 0.5
MAX_CHUNK = 1024
# Metrics that are NaN by right: there may be no finished episode, nothing to explain.
MAY_BE_NAN = ("episode_", "explained_variance")
BROKEN_PROMISES = {
    "reused_resets": "more episodes ended in a rollout than there were fresh resets, so some were "
    "used twice: raise --reset-pool, or correct the environment's shortest_episode",
    "lost_cuts": "episodes were truncated sooner than the environment's time_limit says, and "
    "bootstrapped from wrong states: correct it, or set it to None",
    "unfinished_episodes": "episodes were longer than the time_limit that was given, and counted "
    "as if they had ended: set --time-limit to the steps of the longest",
}
# Folded into the seed for the key of the final evaluation, which training never uses.
EVALUATION = 0xE7A1


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run does beside learning; none of it changes a number."""

    run_dir: Path | None = option(None, "where the run is kept; None: a new folder in runs/")
    resume: Path | None = option(None, "run directory to continue")
    overwrite: bool = option(False, "replace an existing run directory")
    eval_episodes: int = option(128, "greedy episodes at the end", low=0)
    log_every: int = option(1, "updates per line of metrics.jsonl", low=1)
    checkpoint_seconds: float = option(30.0, "time between checkpoints", low=0)
    tensorboard: bool = option(False, "write TensorBoard events too")
    wandb: bool = option(False, "tell Weights & Biases too")
    trackio: bool = option(False, "tell trackio too, which keeps runs on this machine")


class Diverged(RuntimeError):
    """A number is no longer finite: which, when, and what is left."""


class Signals:
    """SIGINT and SIGTERM as a flag that is looked at between chunks; a second SIGINT kills."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "Signals":
        self._previous = {
            s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            terminal.show_cursor()
            os._exit(128 + number)
        self.received = number


Chunk = Callable[[TrainState, dict[str, Any], jax.Array], tuple[TrainState, Metrics]]


def make_chunk(static: TrainConfig, env: Any = None, rows: int = MAX_CHUNK) -> Chunk:
    """Up to `rows` updates as one program; how many is an argument, so it compiles once.

    Args:
        static: from `config.split`.
        env: as for `build`.
        rows: of metrics that there is room for.

    Returns:
        (TrainState, floats, count) -> (TrainState, Metrics with leaves [rows])
    """

    def chunk(
        state: TrainState, floats: dict[str, Any], count: jax.Array
    ) -> tuple[TrainState, Metrics]:
        # Jitted, it is traced once and not again in the loop.
        step = jax.jit(build(configs.merge(static, floats), env).step)
        shapes = jax.eval_shape(step, state)[1]
        empty = jax.tree.map(lambda s: jnp.zeros((rows, *s.shape), s.dtype), shapes)

        def body(k: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, log = carry
            state, metrics = step(state)
            return state, jax.tree.map(lambda kept, x: kept.at[k].set(x), log, metrics)

        return jax.lax.fori_loop(0, count, body, (state, empty))

    return chunk


def compiler_options() -> dict[str, str | bool]:
    """XLA's options for the training programs of runs, and those of sweeps.

    On CPUs LLVM's first level of optimisation: what it makes is as fast as at the third (within 2 %
    on CartPole, Pendulum, Breakout and sixteen agents), and compiling takes 5 to 20 % less, the
    first state half.
    """
    level = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {level: "1"}


class Compiled(NamedTuple):
    """The programs of a run.

    Attributes:
        init: () -> TrainState, compiled when it is called.
        chunk: (TrainState, floats, count) -> (TrainState, Metrics with leaves [MAX_CHUNK]); the
            state that goes in is used up.
        floats: what `chunk` takes.
    """

    init: Callable[[], TrainState]
    chunk: Chunk
    floats: dict[str, Any]


def compile_run(config: TrainConfig, program: Program) -> Compiled:
    """Compile what a run needs, and what it may need only to begin.

    Args:
        config: of the run.
        program: built for it.
    """
    static, floats = configs.split(config)
    init, key = jax.jit(program.init), jax.random.key(config.seed)
    shapes, count = jax.eval_shape(init, key), jax.ShapeDtypeStruct((), jnp.int32)
    chunk = jax.jit(make_chunk(static, program.env), donate_argnums=0)

    lowered, options = chunk.lower(shapes, floats, count), compiler_options()

    def start() -> TrainState:
        return jax.block_until_ready(init.lower(key).compile(options)(key))

    return Compiled(start, lowered.compile(options), floats)


def next_count(count: int, seconds: float, limit: int = MAX_CHUNK) -> int:
    """Updates for CHUNK_SECONDS of work, after `count` of them took `seconds`."""
    return min(limit, max(1, int(CHUNK_SECONDS * count / seconds)))


def run(config: TrainConfig, options: RunOptions) -> int:
    """Train, log, save, evaluate and report.

    Args:
        config: what to learn.
        options: where to keep it.

    Returns:
        Exit code: 0, or 128 + the signal that stopped it.

    Raises:
        ConfigError, CheckpointError, InvalidEnvironment, Diverged: nothing of earlier runs is lost.
    """
    check_record(options)
    trackers.require(_wanted(options))
    program = build(config)
    with _open(config, options) as directory, Signals() as signals, _ended(program.env):
        cache.use()
        with terminal.status("compiling"):
            session = _Session(config, options, program, directory.path, signals)
        if options.resume is not None:
            write_config(config, kept_options(options), directory.path)
        session.train()
        return session.finish()


@contextlib.contextmanager
def _ended(env: Any) -> Iterator[None]:
    """Environments of the host, and their processes, end with the run."""
    try:
        yield
    finally:
        if isinstance(env, HostEnv):
            env.close()


def _wanted(options: RunOptions) -> list[str]:
    """The trackers that are asked for."""
    return [name for name in trackers.TRACKERS if getattr(options, name)]


def kept_options(options: RunOptions) -> dict[str, Any]:
    """Those that a resumed run goes on with unless it is given others."""
    where = ("run_dir", "resume", "overwrite")
    return {k: v for k, v in dataclasses.asdict(options).items() if k not in where}


def _open(config: TrainConfig, options: RunOptions) -> RunDirectory:
    """The run directory, ours alone, with config.json in it."""
    if options.resume is not None:
        if options.run_dir is not None or options.overwrite:
            raise ConfigError("--resume goes on in its own directory: no --run-dir, no --overwrite")
        return RunDirectory(options.resume)
    name = f"{config.env}_{config.algorithm}_seed{config.seed}"
    directory = RunDirectory(options.run_dir or new_directory("runs", name))
    if directory.used and not options.overwrite:
        path = shlex.quote(str(directory.path))
        raise ConfigError(
            f"run directory {path} already holds a run; continue it with --resume {path}, replace "
            "it with --overwrite, or choose another --run-dir"
        )
    directory.clear()
    # Before compiling: a run killed there can be resumed.
    write_config(config, kept_options(options), directory.path)
    return directory


class _Session:
    """From a first or restored state to a summary; the constructor compiles and restores."""

    def __init__(
        self,
        config: TrainConfig,
        options: RunOptions,
        program: Program,
        path: Path,
        signals: Signals,
    ) -> None:
        self.config, self.options, self.program = config, options, program
        self.path, self.signals = path, signals
        self.rollout_steps = config.num_envs * config.num_steps
        self.checkpoints = checkpoints_of(path, config)
        started = time.perf_counter()
        shapes = jax.eval_shape(program.init, jax.random.key(config.seed))
        self.update, state = self._restore(shapes)
        if state is not None and isinstance(program.env, HostEnv):
            state = program.restart(state)  # the host environments ended with their process
        started += self._start_trackers()
        self.compiled = compile_run(config, program)
        self.state = self.compiled.init() if state is None else state
        self.compile_seconds = time.perf_counter() - started
        self.saved = self.update
        earlier = read_summary(path) if self.update else {}
        self.train_seconds = float(earlier.get("train_seconds") or 0.0)
        self.scores: list[float] = []
        self.warned: set[str] = set()
        self.latest = "-"

    def _start_trackers(self) -> float:
        """Seconds that it took; what fails for want of a login does so before the wait."""
        started, first_step = time.perf_counter(), (self.update + 1) * self.rollout_steps
        self.trackers = trackers.start(
            _wanted(self.options), self.path, configs.to_json(self.config), first_step
        )
        return time.perf_counter() - started

    def train(self) -> None:
        """Chunk after chunk, until the last update or a signal."""
        log = metrics_log.MetricsLog(self.path / "metrics.jsonl", self.update, self.trackers)
        total = self.config.num_updates * self.rollout_steps
        count, saved_at = 1, time.perf_counter()
        if self.update < self.config.num_updates:
            self._write_summary("running")
        title = f"{self.config.algorithm} on {self.config.env}, seed {self.config.seed}"
        with log, Progress(total, self.update * self.rollout_steps, title) as progress:
            while self.update < self.config.num_updates and not self.signals.received:
                count = min(count, self.config.num_updates - self.update)
                rows, seconds = self._advance(count)
                log.write([r for r in rows if r["update"] % self.options.log_every == 0])
                self._refuse_nan(rows)
                progress.show(
                    rows[-1]["env_step"], rows[-1]["steps_per_second"], self._detail(rows), rows
                )
                count = next_count(count, seconds)
                if time.perf_counter() - saved_at >= self.options.checkpoint_seconds:
                    self._save()
                    saved_at = time.perf_counter()
        if self.update > self.saved:
            self._save(last=True)

    def finish(self) -> int:
        """Evaluate unless stopped, write the summary and the figure, print the table."""
        evaluation = {}
        if not self.signals.received and self.options.eval_episodes:
            evaluation = self._evaluate()
        stopped = self.signals.received
        trained = self.update == self.config.num_updates
        complete = stopped is None or (trained and bool(evaluation))
        name = f"stopped by {signal.Signals(stopped).name}" if stopped else "finished"
        name = "finished" if complete else name
        summary = self._write_summary(name, evaluation)
        title = f"{self.config.algorithm} on {self.config.env}, seed {self.config.seed}"
        curves.plot_learning_curve(
            self.path / "metrics.jsonl", title, self.path / "learning_curve.png"
        )
        terminal.print_table(summary, self.path)
        if not complete:
            path = shlex.quote(str(self.path))
            terminal.say(f"stopped; continue with: python -m ppo_jax.train --resume {path}")
        return 128 + stopped if stopped else 0

    def _restore(self, shapes: TrainState) -> tuple[int, TrainState | None]:
        """Where to go on from; the start, for a run that was killed before its first checkpoint."""
        if self.options.resume is None:
            return 0, None
        if not self.checkpoints.steps():
            self._check_nothing_was_saved()
            return 0, None
        update, state = self.checkpoints.restore(shapes)
        if update > self.config.num_updates:
            raise ConfigError(
                f"this run has already made {update * self.rollout_steps} environment steps, more "
                f"than total_timesteps = {self.config.total_timesteps}"
            )
        self.checkpoints.clean(after=update)
        return update, state

    def _check_nothing_was_saved(self) -> None:
        """A run killed before its first checkpoint begins again; one whose checkpoints are gone
        does not, for its log would go too."""
        saved = read_summary(self.path).get("env_steps")
        if saved or len(self.checkpoints.orphans()) > 1:
            raise CheckpointError(
                f"the checkpoints of {self.path} are gone"
                + (f", though {saved:,} environment steps were saved" if saved else "")
                + ". Copy them back from a backup, or start again with --run-dir "
                f"{shlex.quote(str(self.path))} --overwrite"
            )
        self.checkpoints.clean(after=0)
        print("no checkpoint was written yet: starting again from step 0", file=sys.stderr)

    def _advance(self, count: int) -> tuple[list[dict[str, Any]], float]:
        """Run `count` updates: (their rows for the log, seconds)."""
        started = time.perf_counter()
        chunk, floats = self.compiled.chunk, self.compiled.floats
        self.state, metrics = chunk(self.state, floats, jnp.int32(count))
        arrays = {name: np.asarray(x)[:count] for name, x in metrics.items()}
        seconds = time.perf_counter() - started
        self.train_seconds += seconds
        rate = count * self.rollout_steps / seconds
        rows = metrics_log.rows_of(arrays, self.update + 1, self.rollout_steps, rate)
        self._warn(rows)
        self.update += count
        self.scores += [r["episode_return"] for r in rows if r["episodes"]]
        return rows, seconds

    def _detail(self, rows: list[dict[str, Any]]) -> str:
        """The mean return of the latest chunk in which an episode ended."""
        returns = [r["episode_return"] for r in rows if r["episodes"]]
        self.latest = f"{np.mean(returns):.1f}" if returns else self.latest
        return f"return {self.latest:>8}"

    def _warn(self, rows: list[dict[str, Any]]) -> None:
        """Say once what an environment promised and did not keep."""
        for metric, meaning in BROKEN_PROMISES.items():
            if metric not in self.warned and any(r.get(metric) for r in rows):
                self.warned.add(metric)
                warnings.warn(meaning, stacklevel=1)

    def _save(self, last: bool = False) -> None:
        """A checkpoint, scored by the episodes since the one before it."""
        score = float(np.mean(self.scores)) if self.scores else None
        try:
            self.checkpoints.save(self.update, self.state, score)
            self.saved, self.scores = self.update, []
            self._write_summary("running")
        except OSError as error:
            if last:
                raise CheckpointError(
                    f"the final state could not be saved in {self.path}: {error}; "
                    "free some space and --resume"
                ) from error
            warnings.warn(f"checkpoint {self.update} not saved ({error}); going on", stacklevel=1)

    def _evaluate(self) -> dict[str, Any]:
        state = self.state
        result = evaluate(
            jax.random.fold_in(jax.random.key(self.config.seed), EVALUATION),
            state.learner.params,
            state.rollout.moments,
            env=self.program.env,
            policy=self.program.policy,
            episodes=self.options.eval_episodes,
        )
        returns = np.asarray(result.episode_return)
        warn_unfinished(np.asarray(result.finished))
        return {
            "eval_return_mean": float(returns.mean()),
            "eval_return_std": float(returns.std()),
            "eval_episodes": len(returns),
        }

    def _write_summary(
        self, status: str, evaluation: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """summary.json as of the last checkpoint; seconds are those of all sessions together."""
        steps, seconds = self.saved * self.rollout_steps, self.train_seconds
        summary = {
            "env": self.config.env,
            "algorithm": self.config.algorithm,
            "seed": self.config.seed,
            "status": status,
            "env_steps": steps,
            "eval_return_mean": None,
            "eval_return_std": None,
            "eval_episodes": 0,
            "compile_seconds": round(self.compile_seconds, 2),
            "train_seconds": round(seconds, 2),
            "env_steps_per_second": round(steps / seconds) if seconds else None,
            **provenance.record(self.config.matmul_precision),
        } | (evaluation or {})
        try:
            write_json(self.path / "summary.json", summary)
        except OSError as error:
            warnings.warn(f"summary.json not written: {error}", stacklevel=1)
        return summary

    def _refuse_nan(self, rows: list[dict[str, Any]]) -> None:
        """Stop at the first number that is not finite and should be.

        Raises:
            Diverged: naming the metric and the update.
        """
        for row in rows:
            bad = [k for k, v in row.items() if v is None and not k.startswith(MAY_BE_NAN)]
            if bad:
                self._write_summary("diverged")
                raise Diverged(
                    f"{', '.join(bad)} is not finite at update {row['update']} "
                    f"(environment step {row['env_step']}); checkpoints before it are untouched. "
                    "Usual causes: a learning rate too high, rewards or observations that are "
                    "not finite or not normalised"
                )


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json, or {} where there is none to be read."""
    try:
        summary = json.loads((path / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}
