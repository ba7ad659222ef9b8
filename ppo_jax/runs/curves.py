"""The curves of one run, from its metrics.jsonl."""

from pathlib import Path

import numpy as np

from ppo_jax.runs.metrics_log import read_metrics


def plot_metrics(metrics: Path, names: list[str], path: Path) -> None:
    """Draw metrics against updates, one panel each.

    Args:
        metrics: a metrics.jsonl.
        names: columns of it.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(read_metrics(metrics))
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
