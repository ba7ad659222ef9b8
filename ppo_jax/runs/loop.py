"""The host loop of every run: chunks of compiled updates, and all that happens between them.

The training of an agent, a stage of a language model and a round of a sweep are each a `Job`. A run
is stored in a folder by `RunRecord`, or kept in memory by `InMemory`.
"""

import contextlib
import math
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import guard, watch
from ppo_jax.config import ConfigError
from ppo_jax.runs import cluster, failures, memory, terminal
from ppo_jax.runs.chunk import Chunk, next_count
from ppo_jax.runs.cluster.watch import LONG_WORK
from ppo_jax.runs.divergence import Bad, bad_values, how_to_see, message, origin
from ppo_jax.runs.job import UNITS, Callback, Diverged, Job, Progress, Result, RunFailed
from ppo_jax.runs.metrics_log import position_of
from ppo_jax.runs.options import KeepOptions
from ppo_jax.runs.outside import watched
from ppo_jax.runs.record import InMemory, RunRecord, scores_of
from ppo_jax.runs.replay import Recorder
from ppo_jax.runs.signals import Signals

SAMPLE_SECONDS = 20.0


def run(
    job: Job,
    record: RunRecord | InMemory,
    *,
    callbacks: Sequence[Callback] = (),
    signals: Signals,
    chunk: Chunk | None = None,
) -> Result:
    """Compile, train, log, evaluate, save and summarise; a signal ends the run between two chunks.

    Args:
        job: description of the run.
        record: the store of the run, a folder or memory.
        callbacks: functions called between chunks with (Progress, state); a true result ends the
            run. The next chunk reuses the memory of the state: copy arrays that you keep.
        signals: signal handlers of the command, which may run several jobs.
        chunk: compiled program of the job, if the caller already has one.

    Returns:
        Result(state, summary, path, exit_code).

    Raises:
        ConfigError, CheckpointError: the run cannot start; files of earlier sessions are unchanged.
        RunFailed: the run failed after it had started; the message describes what has been saved.
    """
    return _Loop(job, record, callbacks, signals, chunk=chunk).run()


def check(job: Job, options: KeepOptions) -> None:
    """Refuse options that do not apply to a job, before anything is written.

    Args:
        job: description of the run.
        options: options of the run.

    Raises:
        ConfigError: the option does not fit the job; the message states a remedy.
    """
    memory.check(job)
    _check_group(job, options)
    if options.eval_every is not None and job.evaluate is None:
        raise ConfigError(
            f"--eval-every is {options.eval_every}, but {job.name} has no evaluation: it has no "
            "episodes or data to evaluate with"
        )
    during, evaluated = job.score
    if options.stop_at is None or (evaluated if options.eval_every is not None else during):
        return
    more = "; also give --eval-every" if evaluated else ""
    raise ConfigError(
        f"--stop-at is {options.stop_at:g}, but {job.name} has no score to compare with it{more}"
    )


def _check_group(job: Job, options: KeepOptions) -> None:
    """Refuse jobs and options that several processes do not support."""
    group = cluster.current()
    if group.size == 1:
        if jax.process_count() > 1:
            raise ConfigError(
                f"JAX runs in {jax.process_count()} processes that were not started by "
                "ppo_jax.runs.cluster; use --distributed, or `with cluster.joined():` instead of "
                "jax.distributed.initialize()"
            )
        return
    if not job.pure:
        raise ConfigError(
            f"{job.name} uses Gymnasium (Python) environments, which cannot be distributed over "
            f"{group.size} processes; train in one process, without --distributed or --coordinator"
        )
    if options.debug_nans or jax.config.jax_debug_nans:  # type: ignore[attr-defined]
        raise ConfigError(
            "--debug-nans (or JAX_DEBUG_NANS) repeats an update in one process, but this run has "
            f"{group.size} processes; to find the origin, resume the run without --distributed and "
            "--coordinator"
        )


def flattened(found: dict[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation, without texts and the like."""
    return finite({name: x for name, x in found.items() if isinstance(x, float | int | None)})


def finite(found: Any) -> Any:
    """Replace numbers that are not finite by None, because JSON does not have them."""
    if isinstance(found, dict):
        return {name: finite(x) for name, x in found.items()}
    return None if isinstance(found, float) and not math.isfinite(found) else found


def reached(goal: float) -> str:
    """The summary's reason for the end of a run that reached its threshold."""
    return f"reached {goal:g}"


class _GivenUp(Exception):
    """A failure outside the programs after a signal: the run ends with its last valid state."""


class _Loop:
    """One session of a run, from the initial or restored state to its summary."""

    def __init__(
        self,
        job: Job,
        record: RunRecord | InMemory,
        callbacks: Sequence[Callback],
        signals: Signals,
        *,
        chunk: Chunk | None,
    ) -> None:
        self.job, self.record, self.callbacks, self.signals = job, record, callbacks, signals
        self.options, self.chunk = record.options, chunk
        self.update, self.ended = 0, ""
        self.warned: set[str] = set()
        self.state: Any = None
        # The invalid numbers of the update that was undone, and what `--debug-nans` recorded.
        self.bad: Bad | None = None
        self.debug = self.options.debug_nans or jax.config.jax_debug_nans  # type: ignore[attr-defined]
        self.recorder: Recorder | None = None
        # The processes that train together, if there are several; this process is their leader.
        self.group = cluster.current() if job.layout is not None else cluster.Alone()

    def run(self) -> Result:
        """Restore or start the run, train and summarise."""
        self.group.attend(self.signals, self._advice)
        result = self._run()
        self.group.tell("end", code=result.exit_code)
        return result

    def _run(self) -> Result:
        self.update, state = self.record.restore(self.job)
        self.state = state
        if state is not None:
            with self._watched():
                state = self.job.restart(state)
            self._check_outside()
        self.ended = self._ended_before()
        if self.update < self.job.updates and not self.signals.received and not self.ended:
            with self.record.open(self.job, self.update), self._watched():
                self._begin(state)
                with self.group.at("between two updates"):
                    self._train()
        else:
            first = self.job.init() if state is None else state
            self.state = first if self.group.size > 1 else self.job.placed(first)
        with self._watched():
            return self._finish()

    def _ended_before(self) -> str:
        """The reason why an earlier session ended early, if it still applies: the threshold and the
        number of updates are unchanged."""
        earlier, goal = self.record.earlier, self.options.stop_at
        if goal is None or earlier.get("updates_asked") != self.job.updates:
            return ""
        return reached(goal) if earlier.get("ended_early") == reached(goal) else ""

    def _begin(self, state: Any) -> None:
        """Prepare the first state and the compiled program."""
        started, job, group = time.perf_counter(), self.job, self.group
        folder = self.record.path
        group.tell("begin", update=self.update, path=folder and str(folder.absolute()))
        with terminal.status("compiling"), self._watching(), self.group.at("compiling", LONG_WORK):
            first = job.init() if state is None else state
            self._check_outside()
            group.same_state(self.update, first)
            self.state = job.placed(first)
            if self.chunk is None:
                self.chunk = job.compiled(self.state)
                memory.check_program(f"an update of {job.name}", self.chunk)
        group.ready()
        self.chunk = group.leading(self.chunk)
        self.record.compile_seconds += time.perf_counter() - started

    def _watching(self) -> contextlib.AbstractContextManager[None]:
        """With `--debug-nans`, record intermediate values if an update cannot be repeated."""
        if not self.debug or self.job.pure:
            return contextlib.nullcontext()
        self.recorder = Recorder()
        return watch.recording(self.recorder)

    def _train(self) -> None:
        """Run chunks until the last update, a signal, or a reason to end early."""
        count, saved_at, shown_at = 1, time.perf_counter(), -float("inf")
        while self.update < self.job.updates and not self.signals.received and not self.ended:
            if time.perf_counter() - shown_at >= self._sample_seconds:
                self._show_samples()
                shown_at = time.perf_counter()
            count = min(count, self._until_next_look())
            try:
                rows, seconds = self._advance(count)
            except _GivenUp:
                break
            if rows:
                self._refuse_nan(rows)
            if self.bad is not None:
                self._diverged(self.bad)
            self._ask(rows)
            if self.record.is_best(self.job, rows):
                self._save()
            count = next_count(count, seconds, self.job.rows)
            if time.perf_counter() - saved_at >= self.options.checkpoint_seconds:
                self._save()
                saved_at = time.perf_counter()
        if self.update > self.record.saved:
            self._save(last=True)
        self._show_samples()

    def _until_next_look(self) -> int:
        """Number of updates until the next evaluation or the end."""
        left, every = self.job.updates - self.update, self.options.eval_every
        return left if every is None else min(left, every - self.update % every)

    def _advance(self, count: int) -> tuple[list[dict[str, Any]], float]:
        """Make `count` updates, or fewer if one is invalid, and log them: (rows, seconds)."""
        job, before = self.job, self.update
        started = time.perf_counter()
        metrics, made = self._made(count)
        arrays = {name: x[..., :made] for name, x in metrics.items()}
        arrays |= {name: np.full(made, n) for name, n in self._numbers().items()}
        seconds = time.perf_counter() - started
        self.update += made
        if not made:
            return [], seconds
        try:
            found = self._evaluation()
        except Exception:  # the rows and the state of the chunk are kept
            self.record.log(job, before, arrays, seconds=seconds, evaluation={})
            self._failed()
            raise
        rows = self.record.log(job, before, arrays, seconds=seconds, evaluation=found)
        self._check_outside()
        self._warn(arrays)
        return rows, seconds

    def _made(self, count: int) -> tuple[dict[str, np.ndarray], int]:
        """Run the program: (metrics [..., rows], number of updates included in the state)."""
        job = self.job
        more = (job.frozen,) if jax.tree.leaves(job.frozen) else ()
        state, hidden, outcome = self.chunk(  # type: ignore[misc]
            self.state, job.floats, jnp.int32(count), *more
        )
        metrics = guard.show(hidden)  # blocks until the program has finished
        self._check_outside()  # after a failure, the previous state is kept
        self.state = state
        if np.ndim(outcome.bad):  # many agents: the others continue if one is invalid
            return metrics, count
        made = int(outcome.made)
        if outcome.bad:
            row = {n: x[made].item() for n, x in metrics.items() if np.ndim(x[made]) == 0}
            self.bad = bad_values(job, outcome.found, row)
        return metrics, made

    def _diverged(self, bad: Bad) -> None:
        """End the run at the first invalid number, with the state before it.

        Args:
            bad: arrays and metrics with invalid numbers.

        Raises:
            Diverged: the message names the arrays and the update.
        """
        job, record = self.job, self.record
        if self.update > record.saved:
            self._save(last=True)
        record.write_summary(job, "diverged")
        hint = "" if self.debug else how_to_see(job, record)
        saved = record.what_is_saved(job)
        text = message(job, bad, self.update, saved=saved, hint=hint)
        if self.debug:
            text += ". " + origin(job, self.state, self.update, self.recorder)
        raise Diverged(text)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Watch the job's activities outside its programs within the block, and report errors of
        its programs in one line."""
        try:
            with watched(self.job.outside, self.signals, self._give_up), failures.quiet():
                yield
        except jax.errors.JaxRuntimeError as error:
            if self.record.path is None:  # the caller may retry with smaller sizes
                raise
            if self.group.size > 1 and not memory.is_exhausted(error):
                raise self.group.broken(error) from error  # the state cannot be gathered any more
            if not memory.is_exhausted(error):
                raise RunFailed(self._saved_after(failures.one_line(error))) from error
            self.record.write_summary(self.job, "failed")
            saved = self.record.what_is_saved(self.job)
            raise RunFailed(f"{memory.exhausted(error)}; {saved}") from error

    def _check_outside(self) -> None:
        """End the run if an activity outside its programs has failed.

        Raises:
            RunFailed: an activity failed; the message states what was saved and how to continue.
            _GivenUp: a signal ends the run anyway.
        """
        outside = self.job.outside
        reason = outside.failure() if outside is not None else None
        if reason is None:
            return
        if self.signals.received:
            warnings.warn(reason, stacklevel=1)
            raise _GivenUp
        raise RunFailed(self._saved_after(reason))

    def _saved_after(self, reason: str) -> str:
        """Save the last valid state after a failure, and return the error message."""
        job, record = self.job, self.record
        if self.update > record.saved and self._is_there():
            self._save(last=True)
        stopped = self.signals.received
        status = f"stopped by {signal.Signals(stopped).name}" if stopped else "failed"
        record.write_summary(job, status, {"reason": reason})
        text = f"{reason}; {record.what_is_saved(job)}"
        return f"{text}. {record.how_to_go_on()}" if record.saved else text

    def _is_there(self) -> bool:
        """Whether the state can be saved: a failed program may have consumed its input state."""
        arrays = [x for x in jax.tree.leaves(self.state) if isinstance(x, jax.Array)]
        return self.state is not None and not any(x.is_deleted() for x in arrays)

    def _give_up(self, reason: str) -> None:
        """End the process from another thread, because the main thread is blocked."""
        try:
            text = self._saved_after(reason)
        except Exception as error:
            text = f"{reason}; {error}"
        terminal.show_cursor()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"error: {text}\n")
            sys.stderr.flush()
        os._exit(self.signals.exit_code or 1)

    def _save(self, *, last: bool = False) -> None:
        """Save the state with `RunRecord.save`; if there are several processes, all take part."""
        state = self.group.gathered(self.state)
        with self.group.at("saving"):
            self.record.save(self.job, self.update, state, last=last)

    def _advice(self) -> str:
        """What has been saved and how to continue, for the last message of several processes."""
        saved, path = self.record.what_is_saved(self.job), self.record.path
        again = f"start all processes again with --resume {shlex.quote(str(path))}"
        return f"{saved}; {again}" if self.record.saved else saved

    def _numbers(self) -> dict[str, int]:
        """Counters of the activities outside the programs, for the log."""
        return self.job.outside.numbers() if self.job.outside is not None else {}

    def _failed(self) -> None:
        """Save the trained state after an evaluation or a callback has failed."""
        self._save(last=True)
        self.record.write_summary(self.job, "failed")

    def _evaluation(self) -> dict[str, Any]:
        """The numbers of an evaluation, if one is due after this update; {} otherwise."""
        every, evaluate = self.options.eval_every, self.job.evaluate
        if every is None or evaluate is None:
            return {}
        # The last state competes for the best one, so that it is evaluated as well.
        last = self.job.keeps_best and self.update == self.job.updates
        if self.update % every and not last:
            return {}
        with self.group.at("in an evaluation", LONG_WORK):
            return flattened(evaluate(self.group.own(self.state), self.update))

    def _ask(self, rows: list[dict[str, Any]]) -> None:
        """Check the threshold and call the callbacks, which may end the run."""
        stop_at = self.options.stop_at
        scores = scores_of(self.job, rows, self.options.eval_every is not None)
        goal = np.inf if stop_at is None else self.job.sign * stop_at
        if stop_at is not None and scores and np.mean(scores) >= goal:
            self.ended = reached(stop_at)
        step = self.update * self.job.units_per_update
        progress = Progress(self.update, self.job.updates, step, rows, self.record.path)
        for callback in self.callbacks:
            try:
                with self.group.at("in a callback"):
                    enough = callback(progress, self.group.own(self.state))
            except Exception:
                self._failed()
                raise
            if enough:
                self.ended = f"ended by {getattr(callback, '__name__', callback)}"

    def _finish(self) -> Result:
        """Evaluate the trained state; write the summary and the figure."""
        job, found = self.job, dict[str, Any]()
        trained = self.update >= job.updates or bool(self.ended)
        if trained and (not self.signals.received or self.record.path is None):
            try:
                with self.group.at("in an evaluation", LONG_WORK):
                    found = finite(self._result())
            except FloatingPointError:  # invalid actions of the network; the state has been saved
                self.record.write_summary(job, "failed")
                raise
            with contextlib.suppress(_GivenUp):
                self._check_outside()
        evaluated = bool(found)
        stopped = self.signals.received
        if trained and (evaluated or not stopped):
            status = "finished"
        else:
            status = f"stopped by {signal.Signals(stopped or signal.SIGINT).name}"
        if self.ended and self.update < job.updates:
            found["ended_early"] = self.ended
        summary = self.record.finish(job, status, found)
        # A signal may also have arrived while the summary was written.
        return Result(self.state, summary, self.record.path, self.signals.exit_code)

    def _result(self) -> dict[str, Any]:
        """The results that summary.json reports: those of the last state, or of the best one."""
        job, path, best = self.job, self.record.path, self.record.best_state(self.job)
        update, state = (self.update, self.state) if best is None else best
        state = self.group.own(state if best is None else job.placed(state))
        if job.result is not None and path is not None:
            chosen = {"model_update": update} if job.keeps_best else {}
            try:
                return job.result(state, path) | chosen
            except OSError as error:
                self.record.write_summary(job, "failed")
                raise RunFailed(
                    f"the result could not be written to {path}: {error}; "
                    f"{self.record.what_is_saved(job)}. If the disk is full, free some "
                    "space; then --resume"
                ) from error
        return job.evaluate(state, update) if job.evaluate is not None else {}

    @property
    def _sample_seconds(self) -> float:
        return getattr(self.options, "sample_seconds", SAMPLE_SECONDS)

    def _show_samples(self) -> None:
        count = getattr(self.options, "samples", 0)
        if self.job.samples is None or not count or not isinstance(self.record, RunRecord):
            return
        samples = self.job.samples(self.state, count)
        self.record.show_samples(self.job, self.update, samples)

    def _warn(self, arrays: dict[str, np.ndarray]) -> None:
        """Warn once if a promise of the environment or the algorithm was broken."""
        for metric, meaning in self.job.promises.items():
            if metric not in self.warned and np.any(arrays.get(metric, 0)):
                self.warned.add(metric)
                warnings.warn(meaning, stacklevel=1)

    def _refuse_nan(self, rows: list[dict[str, Any]]) -> None:
        """End the run if an evaluation has a number that is not finite.

        Raises:
            Diverged: the message names the number and the update.
        """
        job = self.job
        for row in rows:
            bad = [k for k, v in row.items() if v is None and not k.startswith(job.may_be_nan)]
            if bad:
                self._save(last=True)
                self.record.write_summary(job, "diverged")
                verb = "are" if len(bad) > 1 else "is"
                raise Diverged(
                    f"{', '.join(bad)} {verb} not finite at update {row['update']} "
                    f"({UNITS[job.unit]}: {position_of(row):,}); {self.record.what_is_saved(job)}. "
                    f"Usual cause: {job.cause}"
                )
