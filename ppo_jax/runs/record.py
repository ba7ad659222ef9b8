"""The files of a run: checkpoints, metrics.jsonl, samples, summary.json and a figure."""

import contextlib
import json
import os
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax.config import ConfigError
from ppo_jax.runs import curves, files, manifest, provenance, terminal, trackers
from ppo_jax.runs.checkpoint import CheckpointError, Checkpoints
from ppo_jax.runs.job import UNITS, Job, RunFailed
from ppo_jax.runs.metrics_log import Averaged, GrowingFile, MetricsLog, columns_of, rows_of
from ppo_jax.runs.options import KeepOptions
from ppo_jax.runs.terminal import Display


class RunRecord:
    """Writes the files of one run.

    Args:
        path: folder of the run, locked by the caller.
        options: options for storing the run.
        identity: JSON value that a checkpoint must share with the run that restores it.
        defaults, older: arguments of `Checkpoints` about parts of the identity.
        about: fields of summary.json that describe the run, such as algorithm and seed.
        config: flat configuration, for trackers.
        precision: configured precision of matrix products.
        resume: command that continues the run, without the folder; "" if there is none.
        next_steps: name -> command, which are printed at the end of a finished run.
        quiet: whether to print nothing besides the progress display.
        describe: function that writes config.json again, once a run is known to be resumable.
    """

    def __init__(
        self,
        path: Path,
        options: KeepOptions,
        *,
        identity: dict[str, Any],
        about: dict[str, Any],
        config: dict[str, Any],
        defaults: dict[str, Any] | None = None,
        older: tuple[str, ...] = (),
        precision: str = "default",
        resume: str = "",
        next_steps: dict[str, str] | None = None,
        quiet: bool = False,
        describe: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.options, self.about, self.config = path, options, about, config
        self.precision, self.resume, self.quiet = precision, resume, quiet
        self.describe, self.next_steps, self.opened = describe, next_steps or {}, False
        self.checkpoints = Checkpoints(
            path.absolute() / "checkpoints",
            identity,
            defaults=defaults,
            older=older,
            folder=path.absolute(),
        )
        self.damaged: dict[str, str] = {}
        self.earlier: dict[str, Any] = {}
        if options.resume is not None:
            self.damaged = manifest.look(path)
            self.earlier = {} if "summary.json" in self.damaged else read_summary(path)
        self.train_seconds = float(self.earlier.get("train_seconds") or 0.0)
        self.compile_seconds = 0.0
        self.saved, self.scores, self.shown = 0, list[float](), "-"
        self.best: float | None = None  # the best score of a saved state
        self.pending: list[dict[str, Any]] | None = None
        self.samples: GrowingFile | None = None
        self.last: dict[str, Any] = self.earlier.get("last") or {}

    def restore(self, job: Job) -> tuple[int, Any]:
        """Restore the last state: (number of updates made, state); (0, None) for a new run.

        Raises:
            CheckpointError, ConfigError: there is no valid checkpoint, or it has more updates than
                are requested.
        """
        if self.options.resume is None:
            return 0, None
        if not self.checkpoints.steps():
            self._check_nothing_was_saved(job)
            self.describe()
            return 0, None
        update, state = self.checkpoints.restore(job.shapes)
        if update > job.updates:
            done, asked = (n * job.units_per_update for n in (update, job.updates))
            raise ConfigError(
                f"this run has already made {done:,} {UNITS[job.unit]} in {update:,} updates, more "
                f"than the {asked:,} that are requested"
            )
        self.checkpoints.clean(after=update)
        self.describe()
        self.saved, self.pending = update, self.checkpoints.notes(update)
        best = self.checkpoints.best()
        self.best = None if best is None else self.checkpoints.score(best)
        return update, state

    def open(self, job: Job, update: int) -> contextlib.ExitStack:
        """Open the log, the trackers and the display; closing the stack closes them."""
        per, stack = job.units_per_update, contextlib.ExitStack()
        self.opened = True
        wanted = self.options.trackers
        started = trackers.start(wanted, self.path, self.config, (update + 1) * per)
        self._keep_damaged()
        self.averaged = Averaged(self.options.log_every, job.promises, self.pending)
        # An incomplete line that ended the last session is replaced by the complete one.
        whole = self.averaged.before if self.averaged.left else update
        self.metrics_log = MetricsLog(self.path / "metrics.jsonl", whole, started)
        total, quiet = job.updates * per, self.quiet
        self.display = Display(total, update * per, job.name, quiet=quiet, unit=job.unit)
        stack.enter_context(self.metrics_log)
        stack.callback(lambda: self.metrics_log.write(self.averaged.rest()))
        stack.enter_context(self.display)
        self._forget_samples(update)
        stack.callback(self._close_samples)
        self.write_summary(job, "running")
        return stack

    def _close_samples(self) -> None:
        if self.samples is not None:
            self.samples.close()

    def _keep_damaged(self) -> None:
        """Keep a copy of files that differ from their digest and are about to be rewritten."""
        for name in ("metrics.jsonl", "samples.jsonl", "summary.json"):
            if self.damaged.get(name) == "damaged":
                kept = files.aside(self.path / name)
                with files.opened(self.path / name) as file, files.replacing(kept) as copy:
                    copy.writelines(file)
                warnings.warn(f"{self.path / name} is kept as {kept.name}", stacklevel=2)
        if self.damaged.get("metrics.jsonl") == "missing":
            warnings.warn(
                f"the rows of {self.path / 'metrics.jsonl'} before this session are lost; copy the "
                "file back from a backup before you resume, if you have one",
                stacklevel=2,
            )

    def log(
        self,
        job: Job,
        update: int,
        arrays: dict[str, np.ndarray],
        *,
        seconds: float,
        evaluation: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Write the rows of the updates after `update`; the last row includes the evaluation."""
        count = len(next(iter(arrays.values())))
        rate = count * job.units_per_update / seconds
        if "tokens" in arrays:
            tokens_per_second = float(np.sum(arrays["tokens"])) / seconds
            arrays = {**arrays, "tokens_per_second": np.full(count, tokens_per_second)}
        rows = rows_of(arrays, update + 1, job.units_per_update, rate, unit=job.unit)
        rows[-1] |= evaluation
        lines = self.averaged.add(rows, now=bool(evaluation))
        self.metrics_log.write(lines)
        self.train_seconds += seconds
        self.last = rows[-1]
        self.scores += scores_of(job, rows, self.options.eval_every is not None)
        step = rows[-1][columns_of(job.unit)[0]]
        self.display.show(step, rate, self._headline(job, rows), rows)
        return rows

    def _headline(self, job: Job, rows: list[dict[str, Any]]) -> str:
        """The displayed metric: its mean over the new rows, or the previous value."""
        values = [row[job.headline] for row in rows if row.get(job.headline) is not None]
        if values:
            self.shown = f"{np.mean(values):.4g}"
        return f"{job.headline.replace('_', ' ')} {self.shown:>8}"

    def save(self, job: Job, update: int, state: Any, *, last: bool = False) -> None:
        """Write a checkpoint; its score is the mean score since the previous checkpoint, or for a
        job that keeps the best state, the score of this state.

        Raises:
            RunFailed: the last checkpoint cannot be written; for others there is only a warning.
        """
        score = self._score(job, update)
        try:
            notes = {"notes": self.averaged.left} if self.averaged.left else {}
            self.checkpoints.save(update, state, score, **notes)
        except OSError as error:
            if last:
                raise RunFailed(
                    f"the final state could not be saved in {self.path}: {error}; "
                    f"{self.what_is_saved(job)}. If the disk is full, free some "
                    "space; then --resume"
                ) from error
            warnings.warn(f"checkpoint {update} not saved ({error}); continuing", stacklevel=1)
            return
        self.saved, self.scores = update, []
        if score is not None and (self.best is None or score > self.best):
            self.best = score
        self.write_summary(job, "running")

    def _score(self, job: Job, update: int) -> float | None:
        """The score of a checkpoint, of which the largest is the best."""
        scores = self.scores
        if job.keeps_best:
            scores = self._scores(job, [self.last] if self.last.get("update") == update else [])
        return float(np.mean(scores)) if scores else None

    def _scores(self, job: Job, rows: list[dict[str, Any]]) -> list[float]:
        return scores_of(job, rows, self.options.eval_every is not None)

    def is_best(self, job: Job, rows: list[dict[str, Any]]) -> bool:
        """Whether the last row has the best score so far, so that its state is saved at once."""
        scores = self._scores(job, rows[-1:]) if job.keeps_best else []
        return bool(scores) and (self.best is None or scores[0] > self.best)

    def best_state(self, job: Job) -> tuple[int, Any] | None:
        """(number of updates, state) of the checkpoint with the best score; None if the last state
        is the one to use."""
        wanted = job.keeps_best and getattr(self.options, "final_model", "last") == "best"
        best = self.checkpoints.best() if wanted and self.options.eval_every is not None else None
        if best is None or best == self.saved:
            return None
        try:
            return self.checkpoints.restore(job.shapes, best)
        except CheckpointError as error:
            warnings.warn(f"{error}; the last state is used instead of the best", stacklevel=2)
            return None

    def what_is_saved(self, job: Job) -> str:
        """A phrase that describes what has been saved, for error messages."""
        done = f"{self.saved * job.units_per_update:,} {UNITS[job.unit]}"
        return f"saved in {self.path}: the state after {done}" if self.saved else "nothing is saved"

    def how_to_go_on(self) -> str:
        """How to continue after a failure that may not recur, for error messages."""
        if not self.resume:
            return "Fix the problem and resume the run"
        return f"To continue: {self.resume} --resume {shlex.quote(str(self.path))}"

    def show_samples(self, job: Job, update: int, samples: list[dict[str, Any]]) -> None:
        """Append samples to samples.jsonl, and print the first of them."""
        lines = [json.dumps({"update": update, **sample}) + "\n" for sample in samples]
        try:
            if self.samples is None:
                self.samples = GrowingFile(self.path, "samples.jsonl", [])
            self.samples.append(lines)
        except OSError as error:
            warnings.warn(f"samples.jsonl cannot be written: {error}", stacklevel=1)
        if self.quiet:
            return
        for sample in samples[:2]:
            numbers = {k: f"{v:.2f}" for k, v in sample.items() if isinstance(v, float)}
            words = "  ".join(f"{name} {value}" for name, value in numbers.items())
            terminal.say(f"    {sample['prompt']!r} -> {sample['response']!r}  {words}")

    def finish(self, job: Job, status: str, found: dict[str, Any]) -> dict[str, Any]:
        """Write the summary and the figure, print the result, and return summary.json's content."""
        summary = self.write_summary(job, status, found)
        try:
            curves.plot_run(self.path, job)
        except Exception as error:  # a missing figure does not make a finished run a failure
            warnings.warn(f"learning_curve.png not written: {error}", stacklevel=1)
        manifest.settle(self.path)
        if not self.quiet:
            self._print_end(job, status, summary)
        return summary

    def _print_end(self, job: Job, status: str, summary: dict[str, Any]) -> None:
        """The summary, and the commands that may follow."""
        if status == "finished" and not self.opened:
            done = f"{self.saved * job.units_per_update:,} {UNITS[job.unit]}"
            terminal.say(f"this run was finished before, after {done}: nothing was trained")
        terminal.print_summary(job.name, summary, self.path)
        if status.startswith("stopped by") and self.resume:
            command = f"{self.resume} --resume {shlex.quote(str(self.path))}"
            terminal.say(f"stopped; continue with: {command}")
        elif status == "finished":
            terminal.print_next(self.next_steps)

    def write_summary(
        self, job: Job, status: str, found: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write summary.json for the last checkpoint; seconds are the sum over all sessions."""
        units, seconds = self.saved * job.units_per_update, self.train_seconds
        rate = units / seconds if seconds else None
        summary = self.about | {
            "status": status,
            "updates": self.saved,
            "updates_asked": job.updates,
            job.unit: units,
            "compile_seconds": round(self.compile_seconds, 2),
            "train_seconds": round(seconds, 2),
            f"{job.unit}_per_second": rate and round(rate, 1 if rate < 1000 else None),
            "last": self.last,
            **(job.outside.numbers() if job.outside is not None else {}),
            **provenance.record(self.precision, devices=job.devices),
            **(found or {}),
        }
        try:
            manifest.write_json(self.path, "summary.json", summary, grown=self._grown())
        except OSError as error:
            warnings.warn(f"summary.json not written: {error}", stacklevel=1)
        return summary

    def _grown(self) -> dict[str, manifest.Entry]:
        """Manifest entries of the growing files, after writing them to the disk."""
        log = getattr(self, "metrics_log", None)
        growing = [f for f in (log and log.file, self.samples) if f is not None]
        return {file.path.name: file.synced() for file in growing}

    def _check_nothing_was_saved(self, job: Job) -> None:
        """Restart a run that was killed before its first checkpoint; refuse one whose checkpoints
        are missing, because restarting it would delete its log."""
        saved = self.earlier.get(job.unit)
        if saved or len(self.checkpoints.orphans()) > 1:
            raise CheckpointError(
                f"the checkpoints of {self.path} are missing"
                + (f", though {saved:,} {UNITS[job.unit]} were saved" if saved else "")
                + ". Copy them back from a backup, or start again with --run-dir "
                f"{shlex.quote(str(self.path))} --overwrite"
            )
        self.checkpoints.clean(after=0)
        if self.earlier and not self.quiet:
            terminal.complain("no checkpoint was saved yet: starting again from step 0")

    def _forget_samples(self, update: int) -> None:
        """Drop the samples of updates that will be repeated."""
        path = self.path / "samples.jsonl"
        if not os.path.lexists(path):
            return
        kept = []
        with files.opened(path) as file:
            lines = file.read().decode(errors="replace").splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                if json.loads(line)["update"] < max(update, 1):
                    kept.append(line + "\n")
        self.samples = GrowingFile(self.path, "samples.jsonl", kept)


class InMemory:
    """A run without files: its metrics and its last state are kept as arrays.

    Attributes:
        metrics: name -> [..., U], the metrics of all updates.
        state: the last state, once the run has finished.
    """

    options = KeepOptions()
    path = None
    earlier: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.compile_seconds, self.saved = 0.0, 0
        self.parts: list[dict[str, np.ndarray]] = []
        self.state: Any = None

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The metrics of all updates, in order."""
        return {
            name: np.concatenate([p[name] for p in self.parts], axis=-1) for name in self.parts[0]
        }

    def restore(self, job: Job) -> tuple[int, Any]:
        """Return (0, None), because there is nothing to restore."""
        return 0, None

    def open(self, job: Job, update: int) -> contextlib.ExitStack:
        """Return an empty stack, because there are no files to open."""
        return contextlib.ExitStack()

    def log(self, job: Job, update: int, arrays: Any, **_: Any) -> list:
        """Keep the metrics of a chunk."""
        self.parts.append(arrays)
        return []

    def save(self, job: Job, update: int, state: Any, *, last: bool = False) -> None:
        """Keep the last state; the memory of earlier states is reused."""
        if last:
            self.state, self.saved = state, update

    def is_best(self, job: Job, rows: list[dict[str, Any]]) -> bool:
        """Return False, because only the last state is kept."""
        return False

    def best_state(self, job: Job) -> None:
        """Return None, because only the last state is kept."""
        return

    def what_is_saved(self, job: Job) -> str:
        """A phrase for error messages."""
        return "nothing is saved"

    def how_to_go_on(self) -> str:
        """Return "", because a run in memory cannot be continued."""
        return ""

    def write_summary(self, job: Job, status: str, found: Any = None) -> dict[str, Any]:
        """Return {}, because there is no summary file."""
        return {}

    def finish(self, job: Job, status: str, found: dict[str, Any]) -> dict[str, Any]:
        """Return the results unchanged."""
        return found


def scores_of(job: Job, rows: list[dict[str, Any]], evaluated: bool) -> list[float]:
    """The scores of the rows that have one, by which the best checkpoint is chosen: the largest is
    the best."""
    name = job.score[1 if evaluated else 0]
    return [job.sign * row[name] for row in rows if name and row.get(name) is not None]


def read_summary(path: Path) -> dict[str, Any]:
    """The content of summary.json; {} if it is missing or damaged."""
    try:
        summary = json.loads(files.read_text(path / "summary.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}
