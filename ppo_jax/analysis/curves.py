"""From the runs of a comparison to its curves: which runs form one curve, and how it is named."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.analysis.read import Run
from ppo_jax.config.options import show

BINS = 200
# Differences between configurations that do not appear in the name of a curve.
UNNAMED = ("seed", "total_timesteps", "updates")
# Longer names are replaced by the names of the folders where these differ.
LABEL_WIDTH = 100


class Curve(NamedTuple):
    """Runs of one configuration, which differ in the seed alone.

    Attributes:
        env: environment of the runs, or the stage of a language model.
        metric: name of the metric.
        unit: unit of progress, a key of `runs.terminal.UNITS`.
        label: values in which the configuration differs from the others in this environment.
        x: positions on the horizontal axis, [B].
        values: smoothed values of each run, [S, B].
        raw: values of each run without smoothing, [S, B].
    """

    env: str
    metric: str
    unit: str
    label: str
    x: np.ndarray
    values: np.ndarray
    raw: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """Mean over runs, [B]."""
        return self.values.mean(axis=0)


def curves(runs: Sequence[Run], smooth: float = 0.0) -> list[Curve]:
    """Group runs by configuration and interpolate them at common positions.

    Args:
        runs: the runs of a comparison.
        smooth: fraction of a curve that the window of the moving average spans.

    Returns:
        Curves by environment, and within one the curve with the highest final value first; each as
        long as the shortest of its runs.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str({**run.config, "seed": None}), []).append(run)
    found: list[Curve] = []
    for env in dict.fromkeys(run.env for run in runs):
        here = [group for group in groups.values() if group[0].env == env]
        labels = _labels([group[0] for group in here])
        several = [_curve(n, group, smooth) for n, group in zip(labels, here, strict=True)]
        found += sorted(several, key=lambda curve: -curve.middle[-1])
    return found


def _curve(label: str, group: Sequence[Run], smooth: float) -> Curve:
    end = min(run.columns["x"][-1] for run in group)
    rows = min(int((run.columns["x"] <= end).sum()) for run in group)
    bins = max(1, min(BINS, rows))
    edges = np.linspace(0, end, bins + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    raw, values = (
        np.array([_binned(run.columns, edges, middle, window) for run in group])
        for window in (1, round(smooth * bins))
    )
    first = group[0]
    return Curve(first.env, first.metric, first.unit, label, middle, values, raw)


def _binned(
    columns: dict[str, np.ndarray], edges: np.ndarray, middle: np.ndarray, window: int
) -> np.ndarray:
    """Weighted means of the values of a run in B intervals, [B]; empty ones are interpolated."""
    place = np.clip(np.searchsorted(edges, columns["x"], "left") - 1, 0, None)
    inside = place < len(middle)
    place, weight = place[inside], columns["weight"][inside]
    total: np.ndarray = np.bincount(place, weight * columns["metric"][inside], len(middle))
    count: np.ndarray = np.bincount(place, weight, len(middle))
    if window > 1:
        kernel = np.ones(window + 1 - window % 2)
        half = len(kernel) // 2
        total, count = (np.convolve(v, kernel)[half : half + len(v)] for v in (total, count))
    some = count > 1e-9
    return np.interp(middle, middle[some], total[some] / count[some])


def _labels(runs: Sequence[Run]) -> list[str]:
    """Names that distinguish configurations: the algorithm if it suffices, otherwise the values."""
    flat = [run.config for run in runs]
    names = [n for n in dict.fromkeys(n for f in flat for n in f) if n not in UNNAMED]
    differ = [n for n in names if len({str(f[n]) for f in flat if n in f}) > 1]
    algorithms = [str(f["algorithm"]) for f in flat]
    if len({*algorithms}) == len(algorithms):
        return algorithms
    others = [n for n in differ if n != "algorithm"]
    labels = [""] * len(flat)
    for digits in (3, 4, 5, 6):
        if len({*labels}) == len(labels):
            break
        for k, (f, algorithm) in enumerate(zip(flat, algorithms, strict=True)):
            parts = [algorithm] if "algorithm" in differ else []
            parts += [f"{n}={_text(f[n], digits)}" for n in others if n in f]
            labels[k] = ", ".join(parts)
    shorter = [run.path.name for run in runs]
    if max(map(len, labels)) > LABEL_WIDTH and len({*shorter}) == len(shorter):
        return shorter
    if len({*labels}) < len(labels):
        return [f"{label} ({run.path})".strip() for label, run in zip(labels, runs, strict=True)]
    return labels


def _text(value: Any, digits: int) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else show(value)
