"""A stage on disk: chunks of compiled updates, and everything that happens between them.

The run directory, its checkpoints, signals and reports are those of `ppo_jax.runs.loop`; a stage is
one of fine-tuning, a reward model, or PPO.
"""

import contextlib
import dataclasses
import hashlib
import json
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import precision
from ppo_jax.config import ConfigError
from ppo_jax.config.options import option, to_json
from ppo_jax.rlhf.export import save_folder
from ppo_jax.runs import cache, metrics_log, provenance, terminal, trackers
from ppo_jax.runs.checkpoint import CheckpointError, Checkpoints, write_json
from ppo_jax.runs.folder import RunDirectory
from ppo_jax.runs.loop import Diverged, Signals, compiler_options, next_count, read_summary
from ppo_jax.runs.terminal import Progress
from ppo_jax.types import Metrics, PyTree, TrainState

# A chunk never has more updates than this.
MAX_CHUNK = 64
MAY_BE_NAN = ("explained_variance",)
# Options that older runs do not have, and what they did without.
YOUNGER = {"matmul_precision": "default"}


class StageDirectory(RunDirectory):
    """The folder of a stage, or of a demo, which has one for each stage in it."""

    contents = (*RunDirectory.contents, "samples.jsonl", "model", "sft", "reward", "ppo")
    kind = "run of ppo_jax.rlhf"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run does beside learning; none of it changes a number."""

    run_dir: Path | None = option(None, "where the run is kept; None: a new folder in runs/")
    resume: Path | None = option(None, "run directory to continue")
    overwrite: bool = option(False, "replace an existing run directory")
    checkpoint_seconds: float = option(60.0, "time between checkpoints", low=0)
    sample_seconds: float = option(20.0, "time between samples that are shown", low=0)
    samples: int = option(4, "responses that are shown", low=0)
    tensorboard: bool = option(False, "write TensorBoard events too")
    wandb: bool = option(False, "log to Weights & Biases too")
    trackio: bool = option(False, "log to trackio too")


class Stage(NamedTuple):
    """What a session runs.

    Attributes:
        kind: "sft", "reward" or "ppo".
        init: () -> TrainState.
        step: (TrainState, frozen) -> (TrainState, Metrics).
        frozen: arrays that nothing changes.
        updates: of the whole run.
        rows: sequences per update.
        headline: the metric that is shown while it runs.
        save: (TrainState, folder): writes the model.
        judge: TrainState -> what the summary says of the result.
        samples: (TrainState, count) -> responses to be looked at.
        place: puts a state where it is worked on, on several devices.
    """

    kind: str
    init: Callable[[], TrainState]
    step: Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]
    frozen: PyTree
    updates: int
    rows: int
    headline: str
    save: Callable[[TrainState, Path], None]
    judge: Callable[[TrainState], dict[str, Any]] = lambda state: {}
    samples: Callable[[TrainState, int], list[dict[str, Any]]] | None = None
    place: Callable[[TrainState], TrainState] = lambda state: state


def run(
    stage: Stage,
    config: dict[str, Any],
    directory: RunDirectory,
    options: RunOptions,
    signals: Signals,
    *,
    free: tuple[str, ...] = ("updates",),
    hint: bool = True,
) -> tuple[int, TrainState]:
    """Train, log, show, save and judge.

    Args:
        stage: what.
        config: its flat configuration, which a checkpoint must share to be gone on with.
        directory: where.
        options: how.
        signals: that end it between two chunks.
        free: what of the configuration may be another.
        hint: say how to go on, if it is stopped.

    Returns:
        (exit code: 0, or 128 + the signal that stopped it; the last state)

    Raises:
        CheckpointError, Diverged: nothing of earlier sessions is lost.
    """
    trackers.require(wanted(options))
    cache.use()
    stage = precision.apply(config.get("matmul_precision", "default"), stage)
    identity = {k: v for k, v in config.items() if k not in free}
    identity["given"] = fingerprint(stage.frozen)
    session = _Session(stage, identity, directory.path, options, signals)
    if options.resume is not None:
        write_config(directory.path, stage.kind, config)
    if session.finished:
        return 0, session.state
    session.train()
    return session.finish(hint), session.state


def checkpoints_of(path: Path, identity: dict[str, Any]) -> Checkpoints:
    """The checkpoints of a stage.

    Args:
        path: its folder.
        identity: its flat configuration, which a checkpoint must share.
    """
    return Checkpoints(path.absolute() / "checkpoints", YOUNGER | identity, defaults=YOUNGER)


def fingerprint(frozen: PyTree) -> str:
    """What a stage learns from, in a few letters: all tokens, and the sums of all weights."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(frozen):
        exact = not jnp.issubdtype(leaf.dtype, jnp.floating)
        content = np.asarray(leaf).tobytes() if exact else repr(float(jnp.sum(leaf))).encode()
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode() + content)
    return digest.hexdigest()[:16]


class _Session:
    """From a first or restored state to a model and a summary; the constructor restores."""

    def __init__(
        self,
        stage: Stage,
        identity: dict[str, Any],
        path: Path,
        options: RunOptions,
        signals: Signals,
    ) -> None:
        self.stage, self.path, self.options, self.signals = stage, path, options, signals
        self.identity = identity
        self.checkpoints = checkpoints_of(path, identity)
        earlier = read_summary(path) if options.resume is not None else {}
        self.update, state = self._restore(earlier)
        self.state = stage.place(state)
        self.finished = earlier.get("status") == "finished" and self.update == stage.updates
        self.saved, self.compile_seconds = self.update, 0.0
        self.train_seconds = float(earlier.get("train_seconds") or 0.0)
        self.last: dict[str, Any] = earlier.get("last") or {}
        self.chunk: Any = None

    def train(self) -> None:
        """Chunk after chunk, until the last update or a signal."""
        if self.update >= self.stage.updates or self.signals.received:
            return
        self._forget_samples()
        first_step = (self.update + 1) * self.stage.rows
        told = trackers.start(wanted(self.options), self.path, self.identity, first_step)
        log = metrics_log.MetricsLog(self.path / "metrics.jsonl", self.update, told)
        total = self.stage.updates * self.stage.rows
        started = time.perf_counter()
        with terminal.status("compiling"):
            self.chunk = self._compile()
        self.compile_seconds = time.perf_counter() - started
        self._write_summary("running")
        with log, Progress(total, self.update * self.stage.rows, self.stage.kind) as progress:
            self._loop(log, progress)
            self._show()
        if self.update > self.saved:
            self._save(last=True)

    def finish(self, hint: bool) -> int:
        """Write the model, judge it, and say what came out."""
        stopped = self.signals.received
        done = self.update >= self.stage.updates
        if done:
            save_folder(self.path / "model", lambda folder: self.stage.save(self.state, folder))
            stopped = None
        judged = self.stage.judge(self.state) if done else {}
        name = "finished" if done else f"stopped by {signal.Signals(stopped or 2).name}"
        self._write_summary(name, judged)
        self._plot()
        if not done and hint:
            path = shlex.quote(str(self.path))
            terminal.say(
                f"stopped; continue with: python -m ppo_jax.rlhf {self.stage.kind} --resume {path}"
            )
        return 128 + stopped if stopped else 0

    def _loop(self, log: metrics_log.MetricsLog, progress: Progress) -> None:
        count, saved_at = 1, time.perf_counter()
        shown_at = -float("inf")
        while self.update < self.stage.updates and not self.signals.received:
            if time.perf_counter() - shown_at >= self.options.sample_seconds:
                self._show()
                shown_at = time.perf_counter()
            count = min(count, self.stage.updates - self.update)
            rows, seconds = self._advance(count)
            log.write(rows)
            self._refuse_nan(rows)
            headline = f"{self.stage.headline} {rows[-1][self.stage.headline]:.4f}"
            progress.show(rows[-1]["env_step"], rows[-1]["steps_per_second"], headline)
            count = next_count(count, seconds, MAX_CHUNK)
            if time.perf_counter() - saved_at >= self.options.checkpoint_seconds:
                self._save()
                saved_at = time.perf_counter()

    def _restore(self, earlier: dict[str, Any]) -> tuple[int, TrainState]:
        shapes = jax.eval_shape(self.stage.init)
        if self.options.resume is None or not self.checkpoints.steps():
            if earlier.get("updates"):
                raise CheckpointError(
                    f"the checkpoints of {self.path} are gone, though {earlier['updates']} updates "
                    "were saved. Copy them back from a backup, or start again with --overwrite"
                )
            self.checkpoints.clean(after=0)
            # Not one program: the weights it starts from would be constants of it.
            return 0, self.stage.init()
        update, state = self.checkpoints.restore(shapes)
        if update > self.stage.updates:
            raise ConfigError(
                f"this run has already made {update} updates, more than updates = "
                f"{self.stage.updates}"
            )
        self.checkpoints.clean(after=update)
        return update, state

    def _compile(self) -> Any:
        """Up to MAX_CHUNK updates as one program."""

        def chunk(state: TrainState, frozen: PyTree, count: jax.Array) -> Any:
            step = jax.jit(self.stage.step)
            shapes = jax.eval_shape(step, state, frozen)[1]
            empty = jax.tree.map(lambda s: jnp.zeros((MAX_CHUNK, *s.shape), s.dtype), shapes)

            def body(k: jax.Array, carry: Any) -> Any:
                state, metrics = step(carry[0], frozen)
                return state, jax.tree.map(lambda log, x: log.at[k].set(x), carry[1], metrics)

            return jax.lax.fori_loop(0, count, body, (state, empty))

        lowered = jax.jit(chunk, donate_argnums=0).lower(
            self.state, self.stage.frozen, jnp.int32(1)
        )
        return lowered.compile(compiler_options())

    def _advance(self, count: int) -> tuple[list[dict[str, Any]], float]:
        """Run `count` updates: (their rows for the log, seconds)."""
        started = time.perf_counter()
        try:
            self.state, metrics = self.chunk(self.state, self.stage.frozen, jnp.int32(count))
            arrays = {name: np.asarray(x)[:count] for name, x in metrics.items()}
        except jax.errors.JaxRuntimeError:  # a reward of the user's own, say
            self._write_summary("failed")
            raise
        seconds = time.perf_counter() - started
        self.train_seconds += seconds
        rate = count * self.stage.rows / seconds
        rows = metrics_log.rows_of(arrays, self.update + 1, self.stage.rows, rate)
        self.update += count
        self.last = rows[-1]
        return rows, seconds

    def _show(self) -> None:
        """Append samples to samples.jsonl, and the first of them to the talk."""
        if self.stage.samples is None or not self.options.samples:
            return
        samples = self.stage.samples(self.state, self.options.samples)
        try:
            with (self.path / "samples.jsonl").open("a") as file:
                for sample in samples:
                    file.write(json.dumps({"update": self.update, **sample}) + "\n")
        except OSError as error:
            warnings.warn(f"samples.jsonl cannot be written: {error}", stacklevel=1)
        for sample in samples[:2]:
            numbers = {k: f"{v:.2f}" for k, v in sample.items() if isinstance(v, float)}
            said = "  ".join(f"{name} {value}" for name, value in numbers.items())
            terminal.say(f"    {sample['prompt']!r} -> {sample['response']!r}  {said}")

    def _forget_samples(self) -> None:
        """Those of updates that will be made again."""
        path = self.path / "samples.jsonl"
        if path.exists():
            kept = []
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    if json.loads(line)["update"] < max(self.update, 1):
                        kept.append(line + "\n")
            path.write_text("".join(kept))

    def _save(self, last: bool = False) -> None:
        try:
            self.checkpoints.save(self.update, self.state)
            self.saved = self.update
            self._write_summary("running")
        except OSError as error:
            if last:
                raise CheckpointError(
                    f"the final state could not be saved in {self.path}: {error}; "
                    "free some space and --resume"
                ) from error
            warnings.warn(f"checkpoint {self.update} not saved ({error}); going on", stacklevel=1)

    def _write_summary(self, status: str, judged: dict[str, Any] | None = None) -> None:
        rows, seconds = self.saved * self.stage.rows, self.train_seconds
        summary = {
            "stage": self.stage.kind,
            "algorithm": self.identity.get("algorithm", self.stage.kind),
            "seed": self.identity.get("seed"),
            "status": status,
            "updates": self.saved,
            "sequences": rows,
            "sequences_per_second": round(rows / seconds, 1) if seconds else None,
            "compile_seconds": round(self.compile_seconds, 2),
            "train_seconds": round(seconds, 2),
            "last": self.last,
            **provenance.record(self.identity.get("matmul_precision", "default")),
        } | (judged or {})
        try:
            write_json(self.path / "summary.json", summary)
        except OSError as error:
            warnings.warn(f"summary.json not written: {error}", stacklevel=1)

    def _plot(self) -> None:
        """The headline against updates."""
        from ppo_jax.runs.curves import plot_metrics

        names = [n for n in (self.stage.headline, "kl", "shaped_score") if n in self.last]
        plot_metrics(
            self.path / "metrics.jsonl", [*dict.fromkeys(names)], self.path / "learning_curve.png"
        )

    def _refuse_nan(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            bad = [k for k, v in row.items() if v is None and not k.startswith(MAY_BE_NAN)]
            if bad:
                self._write_summary("diverged")
                raise Diverged(
                    f"{', '.join(bad)} is not finite at update {row['update']}; checkpoints before "
                    "it are untouched. Usual cause: a learning rate too high"
                )


def open_directory(kind: str, options: RunOptions, flat: dict[str, Any]) -> RunDirectory:
    """The folder of a stage, ours alone, with config.json in it.

    Raises:
        ConfigError: it holds a run already, or something else, or cannot be written to.
    """
    if options.resume is not None:
        if options.run_dir is not None or options.overwrite:
            raise ConfigError("--resume goes on in its own directory: no --run-dir, no --overwrite")
        directory: RunDirectory = StageDirectory(options.resume)
    else:
        from ppo_jax.runs.folder import new_directory

        directory = StageDirectory(options.run_dir or new_directory("runs", f"rlhf_{kind}"))
        if directory.used and not options.overwrite:
            path = shlex.quote(str(directory.path))
            raise ConfigError(
                f"run directory {path} already holds a run; continue it with --resume {path}, "
                "replace it with --overwrite, or choose another --run-dir"
            )
        directory.clear()
        # Before compiling: a run killed there can be resumed.
        write_config(directory.path, kind, flat)
    return directory


def wanted(options: RunOptions) -> list[str]:
    """The trackers that are asked for."""
    return [name for name in trackers.TRACKERS if getattr(options, name)]


def flat(config: Any) -> dict[str, Any]:
    """The values of a configuration in JSON's types; infinity is the string "inf"."""
    values = config if isinstance(config, dict) else dataclasses.asdict(config)
    return {name: to_json(value) for name, value in values.items()}


def read_stage(run_dir: Path) -> tuple[str, dict[str, Any]]:
    """(kind, configuration) of a stage's folder.

    Raises:
        ConfigError: it is none, or its config.json is damaged.
    """
    path = run_dir / "config.json"
    try:
        content = json.loads(path.read_text())
        return content["stage"], content["config"]
    except OSError as error:
        raise ConfigError(f"{run_dir} is not a run of ppo_jax.rlhf: no config.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not the config.json of a run of ppo_jax.rlhf") from error


def write_config(path: Path, kind: str, flat: dict[str, Any]) -> None:
    """config.json: every value, and each session that went on with it."""
    earlier = []
    if (path / "config.json").exists():
        earlier = json.loads((path / "config.json").read_text()).get("sessions", [])
    session = {
        "command": sys.argv,
        **provenance.record(flat.get("matmul_precision", "default")),
    }
    content = {"stage": kind, "config": flat, "sessions": [*earlier, session]}
    write_json(path / "config.json", content)
