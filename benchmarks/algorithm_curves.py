"""The learning curve of each algorithm in front of those of the others, for its documentation page.

python -m benchmarks.algorithm_curves       writes docs/images/curves/NAME.svg

The curves are those of benchmarks/results/family_curves.csv, which `python -m benchmarks.family`
measures: interquartile mean of the episode return over 32 seeds with its 95 % bootstrap interval.
Nothing is trained here.
"""

from typing import Any

import numpy as np

from benchmarks.family import ENVS, METHODS
from benchmarks.table import RESULTS, Row, read
from ppo_jax.algorithms import ALGORITHMS

FOLDER = RESULTS.parent.parent / "docs/images/curves"
FRONT, BEHIND = "#2C3894", "#A6A6A0"
STYLE = {
    "svg.fonttype": "none",  # text remains text, so that the file is small and can be searched
    "svg.hashsalt": "ppo_jax",  # the same curves give the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.facecolor": "#F4F4F1",  # a light neutral ground for light and dark pages
    "axes.facecolor": "none",
}


def draw(name: str, rows: list[Row]) -> None:
    """Write the figure of one algorithm: a panel for each environment.

    Args:
        name: name of the algorithm in the registry.
        rows: rows of family_curves.csv.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(ENVS), figsize=(11, 2.7), layout="constrained")
        for axes, env in zip(panels, ENVS, strict=True):
            curves = {m: [r for r in rows if (r["env"], r["method"]) == (env, m)] for m in METHODS}
            _draw_panel(axes, curves, name)
            axes.set_title(env, fontsize=10)
            axes.set_xlabel("environment steps (thousands)")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("episode return")
        lines = [plt.Line2D([], [], color=color, linewidth=2) for color in (FRONT, BEHIND)]
        labels = [name, "the other algorithms"]
        figure.legend(lines, labels, loc="outside lower center", ncols=2, frameon=False)
        FOLDER.mkdir(parents=True, exist_ok=True)
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def _draw_panel(axes: Any, curves: dict[str, list[Row]], name: str) -> None:
    """The curves of the other methods in grey, and in front that of the algorithm in color."""
    for method in (m for m in curves if m != name):
        x, middle, _, _ = _columns(curves[method])
        axes.plot(x, middle, color=BEHIND, linewidth=1)
    x, middle, low, high = _columns(curves[name])
    axes.fill_between(x, low, high, color=FRONT, alpha=0.25, linewidth=0)
    axes.plot(x, middle, color=FRONT, linewidth=2)


def _columns(rows: list[Row]) -> list[np.ndarray]:
    """Thousands of steps, interquartile mean, and both ends of the interval."""
    names = ("env_step", "iqm", "ci95_low", "ci95_high")
    steps, *returns = (np.array([float(r[name]) for r in rows]) for name in names)
    return [steps / 1000, *returns]


def main() -> None:
    """Write the figures of all algorithms."""
    rows = read(RESULTS / "family_curves.csv")
    for name in (n for n in ALGORITHMS if n in METHODS):
        draw(name, rows)


if __name__ == "__main__":
    main()
