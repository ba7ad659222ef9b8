"""The learning curve of one run, drawn from its metrics.jsonl."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax.runs import manifest
from ppo_jax.runs.job import UNITS, Job
from ppo_jax.runs.metrics_log import read_metrics


def plot_run(path: Path, job: Job) -> None:
    """Draw learning_curve.png: one panel for each metric in `job.curves`.

    Args:
        path: folder of the run.
        job: the job that was run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    evaluated = job.score[1] or ""
    names = ("env_step", "episodes", evaluated, *job.curves)
    table = _columns(path / "metrics.jsonl", names)
    shown = [n for n in job.curves if np.isfinite(table[n]).any()] or list(job.curves[:1])
    figure = Figure(figsize=(4 * len(shown) + 3, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(job.name, parse_math=False)  # a "$" in a name does not start a formula
    for k, name in enumerate(shown):
        label = name.replace("_", " ")
        axes = figure.add_subplot(1, len(shown), k + 1, xlabel=UNITS[job.unit], ylabel=label)
        _draw(axes, table["env_step"], table[name], table["episodes"])
        if k == 0 and np.isfinite(table[evaluated]).any():
            here = np.isfinite(table[evaluated])
            points = table["env_step"][here], table[evaluated][here]
            axes.plot(*points, "o-", color="tab:orange", markersize=3, label="evaluation")
            axes.legend(frameon=False)
        axes.grid(alpha=0.2)
    with manifest.replacing(path, "learning_curve.png") as file:
        figure.savefig(file, dpi=120, format="png")


def _draw(axes: Any, step: np.ndarray, value: np.ndarray, episodes: np.ndarray) -> None:
    """Draw a metric and its moving average, weighted by the number of episodes if there are any."""
    weight = np.where(np.isfinite(episodes), episodes, 1.0)
    kept = np.isfinite(value) & (weight > 0)
    step, value, weight = step[kept], value[kept], weight[kept]
    if not len(value):
        axes.text(0.5, 0.5, "no episode finished", ha="center", transform=axes.transAxes)
        return
    axes.plot(step, value, color="tab:blue", alpha=0.25, linewidth=0.8, label="per update")
    window = max(1, len(value) // 50)
    kernel = np.ones(window)
    smooth = np.convolve(value * weight, kernel, "valid") / np.convolve(weight, kernel, "valid")
    label = f"mean of {window} updates" if window > 1 else "mean"
    axes.plot(step[window - 1 :], smooth, color="tab:blue", label=label)
    axes.legend(frameon=False)


def _columns(metrics: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read columns of a metrics.jsonl, with NaN for missing values.

    Only these columns are kept, because the log of a long run can be larger than its agent.
    """

    def values() -> Iterator[list[float]]:
        for row in read_metrics(metrics):
            yield [float("nan") if row.get(n) is None else float(row[n]) for n in names]

    table = np.array(list(values()), float).reshape(-1, len(names))
    return dict(zip(names, table.T, strict=True))
