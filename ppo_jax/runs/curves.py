"""The learning curve of one run, drawn from its metrics.jsonl."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax.analysis import style
from ppo_jax.runs import manifest
from ppo_jax.runs.job import UNITS, Job
from ppo_jax.runs.metrics_log import position_of, read_metrics

# Name of the column with the number of units made.
POSITION = "position"


@style.styled
def plot_run(path: Path, job: Job) -> None:
    """Draw learning_curve.png: one panel for each metric in `job.curves`.

    Args:
        path: folder of the run.
        job: the job that was run.
    """
    evaluated = job.score[1] or ""
    names = ("episodes", evaluated, *job.curves)
    table = _columns(path / "metrics.jsonl", names)
    shown = [n for n in job.curves if np.isfinite(table[n]).any()] or list(job.curves[:1])
    columns = max(1, len(shown))
    figure, panels = style.figure(1, columns, size=(4.4 * columns + 2.6, 4.4))
    style.label(panels[0], title=job.name)
    for k, (name, axes) in enumerate(zip(shown, panels, strict=False)):
        _draw(axes, table[POSITION], table[name], table["episodes"])
        if k == 0 and np.isfinite(table[evaluated]).any():
            here = np.isfinite(table[evaluated])
            points = table[POSITION][here], table[evaluated][here]
            axes.plot(*points, "o-", color=style.colour(1), markersize=4, label="evaluation")
        style.label(axes, x=UNITS[job.unit], y=name.replace("_", " "))
        axes.xaxis.set_major_formatter(style.short)
    style.legend(figure)
    with manifest.replacing(path, "learning_curve.png") as file:
        style.save(figure, file, "png")


def _draw(axes: Any, step: np.ndarray, value: np.ndarray, episodes: np.ndarray) -> None:
    """Draw a metric and its moving average, weighted by the number of episodes if there are any."""
    weight = np.where(np.isfinite(episodes), episodes, 1.0)
    kept = np.isfinite(value) & (weight > 0)
    step, value, weight = step[kept], value[kept], weight[kept]
    if not len(value):
        axes.text(0.5, 0.5, "no episode finished", ha="center", transform=axes.transAxes)
        return
    colour = style.colour(0)
    axes.plot(step, value, color=colour, alpha=0.3, linewidth=0.8, label="each update")
    window = max(1, len(value) // 50)
    kernel = np.ones(window)
    smooth = np.convolve(value * weight, kernel, "valid") / np.convolve(weight, kernel, "valid")
    label = f"mean of {window} updates" if window > 1 else "mean"
    axes.plot(step[window - 1 :], smooth, color=colour, label=label)


def _columns(metrics: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read columns of a metrics.jsonl, with NaN for missing values, and POSITION.

    Only these columns are kept, because the log of a long run can be larger than its agent.
    """

    def values() -> Iterator[list[float]]:
        for row in read_metrics(metrics):
            known = [float("nan") if row.get(n) is None else float(row[n]) for n in names]
            yield [float(position_of(row)), *known]

    table = np.array(list(values()), float).reshape(-1, 1 + len(names))
    return dict(zip((POSITION, *names), table.T, strict=True))
