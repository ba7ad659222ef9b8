"""What a run leaves in its folder: checkpoints, metrics.jsonl, samples, summary.json, a figure."""

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
from ppo_jax.runs.metrics_log import Averaged, GrowingFile, MetricsLog, rows_of
from ppo_jax.runs.options import KeepOptions
from ppo_jax.runs.terminal import Display


class RunRecord:
    """The folder of one run while it runs.

    Args:
        path: the folder, locked by the caller.
        options: how the run is kept.
        identity: JSON that a checkpoint must share with the run that restores it.
        defaults, older: of the identity, as for `Checkpoints`.
        about: what summary.json says of the run besides numbers: algorithm, seed.
        config: flat configuration, for trackers.
        precision: configured precision of matrix products.
        resume: the command that continues the run, without the folder; "" for none.
        next_steps: name -> command, which are printed at the end of a finished run.
        quiet: whether nothing is printed besides the progress display.
        describe: writes config.json anew, once it is known that a run can be resumed.
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
        self.pending: list[dict[str, Any]] | None = None
        self.samples: GrowingFile | None = None
        self.last: dict[str, Any] = self.earlier.get("last") or {}

    def restore(self, job: Job) -> tuple[int, Any]:
        """(number of updates made, state); (0, None) at the start of a run.

        Raises:
            CheckpointError, ConfigError: nothing whole to go on from, or more than is asked for.
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
                f"than the {asked:,} that are asked for"
            )
        self.checkpoints.clean(after=update)
        self.describe()
        self.saved, self.pending = update, self.checkpoints.notes(update)
        return update, state

    def open(self, job: Job, update: int) -> contextlib.ExitStack:
        """The log, the trackers and the display, until the stack is closed."""
        per, stack = job.units_per_update, contextlib.ExitStack()
        self.opened = True
        wanted = self.options.trackers
        started = trackers.start(wanted, self.path, self.config, (update + 1) * per)
        self._keep_damaged()
        self.averaged = Averaged(self.options.log_every, job.promises, self.pending)
        # A line that ended a session early is made again, with the rows that belong to it.
        whole = self.averaged.before if self.averaged.left else update
        self.metrics_log = MetricsLog(self.path / "metrics.jsonl", whole, started)
        self.display = Display(job.updates * per, update * per, job.name, quiet=self.quiet)
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
        """What is written anew, but differs from its digest, stays beside it."""
        for name in ("metrics.jsonl", "samples.jsonl", "summary.json"):
            if self.damaged.get(name) == "damaged":
                kept = files.aside(self.path / name)
                with files.opened(self.path / name) as file, files.replacing(kept) as copy:
                    copy.writelines(file)
                warnings.warn(f"{self.path / name} is kept as {kept.name}", stacklevel=2)
        if self.damaged.get("metrics.jsonl") == "gone":
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
        """Write the rows of the updates after `update`; the last has the evaluation's numbers."""
        count = len(next(iter(arrays.values())))
        rate = count * job.units_per_update / seconds
        rows = rows_of(arrays, update + 1, job.units_per_update, rate)
        rows[-1] |= evaluation
        lines = self.averaged.add(rows, now=bool(evaluation))
        self.metrics_log.write(lines)
        self.train_seconds += seconds
        self.last = rows[-1]
        self.scores += scores_of(job, rows, self.options.eval_every is not None)
        self.display.show(rows[-1]["env_step"], rate, self._headline(job, rows), rows)
        return rows

    def _headline(self, job: Job, rows: list[dict[str, Any]]) -> str:
        """The metric that is shown: its mean over the latest rows that have one."""
        values = [row[job.headline] for row in rows if row.get(job.headline) is not None]
        if values:
            self.shown = f"{np.mean(values):.4g}"
        return f"{job.headline.replace('_', ' ')} {self.shown:>8}"

    def save(self, job: Job, update: int, state: Any, *, last: bool = False) -> None:
        """A checkpoint, scored by what came since the one before it.

        Raises:
            RunFailed: the last one cannot be written; earlier ones are only warned of.
        """
        score = float(np.mean(self.scores)) if self.scores else None
        try:
            notes = {"notes": self.averaged.left} if self.averaged.left else {}
            self.checkpoints.save(update, state, score, **notes)
        except OSError as error:
            if last:
                raise RunFailed(
                    f"the final state could not be saved in {self.path}: {error}; "
                    f"{self.what_is_saved(job)}. Free some space and --resume"
                ) from error
            warnings.warn(f"checkpoint {update} not saved ({error}); going on", stacklevel=1)
            return
        self.saved, self.scores = update, []
        self.write_summary(job, "running")

    def what_is_saved(self, job: Job) -> str:
        """For the message of a failure."""
        done = f"{self.saved * job.units_per_update:,} {UNITS[job.unit]}"
        return f"saved in {self.path}: the state after {done}" if self.saved else "nothing is saved"

    def how_to_go_on(self) -> str:
        """For the message of a failure that may not come again; "" where there is no command."""
        if not self.resume:
            return "Mend it, and resume"
        return f"Go on with: {self.resume} --resume {shlex.quote(str(self.path))}"

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
        """The summary, the figure, and the last words: summary.json's content."""
        summary = self.write_summary(job, status, found)
        try:
            curves.plot_run(self.path, job)
        except Exception as error:  # a figure is no reason to call a finished run failed
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
        """summary.json as of the last checkpoint; seconds are those of all sessions together."""
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
        """The entries of the files that are added to, as far as they are on the disk now."""
        log = getattr(self, "metrics_log", None)
        growing = [f for f in (log and log.file, self.samples) if f is not None]
        return {file.path.name: file.synced() for file in growing}

    def _check_nothing_was_saved(self, job: Job) -> None:
        """A run killed before its first checkpoint begins again; one whose checkpoints are gone
        does not, for its log would go too."""
        saved = self.earlier.get(job.unit)
        if saved or len(self.checkpoints.orphans()) > 1:
            raise CheckpointError(
                f"the checkpoints of {self.path} are gone"
                + (f", though {saved:,} {UNITS[job.unit]} were saved" if saved else "")
                + ". Copy them back from a backup, or start again with --run-dir "
                f"{shlex.quote(str(self.path))} --overwrite"
            )
        self.checkpoints.clean(after=0)
        if self.earlier and not self.quiet:
            terminal.complain("no checkpoint was written yet: starting again from step 0")

    def _forget_samples(self, update: int) -> None:
        """Those of updates that will be made again."""
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
    """A run that leaves nothing behind: its metrics and its last state, as arrays.

    Attributes:
        metrics: name -> [..., U] of all updates.
        state: the last one, once the run is finished.
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
        """All updates in their order."""
        return {
            name: np.concatenate([p[name] for p in self.parts], axis=-1) for name in self.parts[0]
        }

    def restore(self, job: Job) -> tuple[int, Any]:
        """Always the start."""
        return 0, None

    def open(self, job: Job, update: int) -> contextlib.ExitStack:
        """Nothing is opened."""
        return contextlib.ExitStack()

    def log(self, job: Job, update: int, arrays: Any, **_: Any) -> list:
        """Keep the arrays."""
        self.parts.append(arrays)
        return []

    def save(self, job: Job, update: int, state: Any, *, last: bool = False) -> None:
        """Keep the last state; those before it will be used up."""
        if last:
            self.state, self.saved = state, update

    def what_is_saved(self, job: Job) -> str:
        """Nothing is."""
        return "nothing is saved"

    def how_to_go_on(self) -> str:
        """There is no way."""
        return ""

    def write_summary(self, job: Job, status: str, found: Any = None) -> dict[str, Any]:
        """There is none."""
        return {}

    def finish(self, job: Job, status: str, found: dict[str, Any]) -> dict[str, Any]:
        """What was found."""
        return found


def scores_of(job: Job, rows: list[dict[str, Any]], evaluated: bool) -> list[float]:
    """The numbers of some rows by which the best checkpoint is chosen."""
    name = job.score[1 if evaluated else 0]
    return [row[name] for row in rows if name and row.get(name) is not None]


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json, or {} where there is none to be read."""
    try:
        summary = json.loads(files.read_text(path / "summary.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}
