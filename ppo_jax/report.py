"""What a run leaves to read: metrics.jsonl, the learning curve, the table at the end."""

import importlib.metadata
import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from ppo_jax import precision

PACKAGES = ("ppo_jax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """Python's and each relevant package's version."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def device() -> str:
    """What JAX runs on, e.g. "cpu" or "NVIDIA H200 x 1"."""
    devices = jax.devices()
    kind = devices[0].device_kind
    return kind if len(devices) == 1 else f"{kind} x {len(devices)}"


def provenance(*configured: str) -> dict[str, Any]:
    """What numbers were computed on: the device, the precision of its products, the versions.

    Args:
        configured: the precision of the run's matrix products; of a sweep that of each point.
    """
    in_effect = ", ".join(dict.fromkeys(map(precision.in_effect, configured)))
    return {"device": device(), "matmul_precision": in_effect, "versions": versions()}


class MetricsLog:
    """metrics.jsonl: one line per logged update, numbers or null.

    Args:
        path: of the file.
        resume_at: lines of later updates are dropped, for they will be made again; 0 starts anew.
        trackers: with log(row) and close(), told the same rows (`trackers.start`).
    """

    def __init__(self, path: Path, resume_at: int, trackers: Sequence[Any] = ()) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("w") as kept:
            rows = (row for row in read_metrics(path) if row["update"] <= resume_at)
            kept.writelines(json.dumps(row) + "\n" for row in rows)
        temporary.replace(path)
        self._file = path.open("a")
        self._trackers = trackers

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows and hand them to the operating system; a full disk is no reason to stop."""
        try:
            self._file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            self._file.flush()
        except OSError as error:
            warnings.warn(f"metrics.jsonl cannot be written: {error}", stacklevel=1)
        for tracker in self._trackers:
            for row in rows:
                tracker.log(row)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl; lines that a crash cut off are passed over."""
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and {"update", "env_step"} <= row.keys():
                yield row


def rows_of(
    metrics: dict[str, np.ndarray], first_update: int, steps_per_update: int, rate: float
) -> list[dict[str, Any]]:
    """Arrays of a chunk of updates as rows of metrics.jsonl.

    Args:
        metrics: name -> [K].
        first_update: number of the first of them, counted from 1.
        steps_per_update: environment steps of one rollout.
        rate: environment steps per second while they ran.
    """
    count = len(next(iter(metrics.values())))
    return [
        {
            "update": first_update + k,
            "env_step": (first_update + k) * steps_per_update,
            **{name: _number(values[k]) for name, values in metrics.items()},
            "steps_per_second": round(rate, 1),
        }
        for k in range(count)
    ]


def _number(x: np.ndarray) -> int | float | None:
    """A JSON number; NaN, which JSON does not have, is null."""
    if np.issubdtype(x.dtype, np.integer):
        return int(x)
    return float(x) if math.isfinite(x) else None


def plot_learning_curve(metrics: Path, title: str, path: Path) -> None:
    """Draw episode return against environment steps from a metrics.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Three numbers of each row, not the rows: a long run's log is larger than its agent.
    names = ("env_step", "episodes", "episode_return")
    rows = (r for r in read_metrics(metrics) if r.get("episodes"))
    table = np.array([[r[n] for n in names] for r in rows], float).reshape(-1, 3)
    step, episodes, returns = table.T
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel="environment steps", ylabel="episode return")
    if len(table):
        axes.plot(step, returns, color="tab:blue", alpha=0.25, linewidth=0.8, label="per update")
        window = max(1, len(table) // 50)
        kernel = np.ones(window)
        total = np.convolve(returns * episodes, kernel, "valid")
        smooth = total / np.convolve(episodes, kernel, "valid")
        label = f"mean of {window} updates" if window > 1 else "mean"
        axes.plot(step[window - 1 :], smooth, color="tab:blue", label=label)
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no episode finished", ha="center", transform=axes.transAxes)
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=120)


def print_table(summary: dict[str, Any], run_dir: Path) -> None:
    """The result of a run as one table."""
    table = Table(title=f"{summary['algorithm']} on {summary['env']}", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    mean, std = summary["eval_return_mean"], summary["eval_return_std"]
    if mean is not None:
        spread = f"{mean:.2f} ± {std:.2f} over {summary['eval_episodes']} episodes, greedy"
        table.add_row("return", spread)
    else:
        table.add_row("status", summary["status"])
    table.add_row("environment steps", f"{summary['env_steps']:,}")
    if summary["env_steps_per_second"]:
        table.add_row("steps per second", f"{summary['env_steps_per_second']:,}")
    table.add_row(
        "compile / train", f"{summary['compile_seconds']} s / {summary['train_seconds']} s"
    )
    table.add_row("device", summary["device"])
    table.add_row("run directory", str(run_dir))
    say(table)


def say(what: Any) -> None:
    """Print to stdout; a reader that went away (`| head`) or a full disk ends the talk alone."""
    try:
        if isinstance(what, str):
            print(what, flush=True)
        else:
            # A file or a pipe has no width of its own; the usual 80 would fold tables.
            Console(width=None if sys.stdout.isatty() else 110).print(what)
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn_unfinished(finished: np.ndarray) -> None:
    """Say so where the returns of an evaluation are not those of whole episodes."""
    if not finished.all():
        cut = f"{(~finished).sum()} of {finished.size} episodes"
        warnings.warn(f"{cut} did not end and were cut: their returns are partial", stacklevel=2)


def show_cursor() -> None:
    """Undo what a live display did to the terminal, for an exit that skips everything else."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")
        sys.stderr.flush()


def status(text: str) -> AbstractContextManager[Any]:
    """A word about what is going on, on a terminal alone."""
    return Console(stderr=True).status(text) if sys.stderr.isatty() else nullcontext()
