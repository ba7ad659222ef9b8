"""Figures of a stage."""

from pathlib import Path

import numpy as np

from ppo_jax import report


def plot_metrics(metrics: Path, names: list[str], path: Path) -> None:
    """Draw metrics against updates, one panel each.

    Args:
        metrics: a metrics.jsonl.
        names: columns of it.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(report.read_metrics(metrics))
    figure = Figure(figsize=(4 * len(names) + 1, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for k, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), k + 1, xlabel="update", title=name)
        points = [(r["update"], r[name]) for r in rows if r.get(name) is not None]
        if points:
            update, value = np.array(points, float).T
            axes.plot(update, value, color="tab:blue", alpha=0.3, linewidth=0.8)
            window = max(1, len(value) // 30)
            smooth = np.convolve(value, np.ones(window) / window, "valid")
            axes.plot(update[window - 1 :], smooth, color="tab:blue")
        axes.grid(alpha=0.2)
    figure.savefig(path, dpi=120)
