"""The figures of a sweep; each is a function of the results."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax.analysis import statistics, style
from ppo_jax.config.options import show
from ppo_jax.runs import manifest
from ppo_jax.sweep.results import PointResult, Setting

# Number of the best configurations whose intervals are drawn; more would cover each other.
BANDS = 4
# Number of configurations that are compared with the best one.
PAIRS = 12
SCORE = "mean return"
NORMALISED = "normalised score (0: worst of the sweep, 1: best)"
RETURN = "episode return in training"
STEPS = "environment steps"


def draw(
    found: Sequence[Setting],
    threshold: float | None,
    folder: Path,
    scales: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """Draw all figures that the results allow, each as PNG, PDF and SVG.

    Args:
        found: configurations, the best first.
        threshold: the return to reach; None: the threshold of each environment.
        folder: folder of the files; the manifest is in the folder around it.
        scales: hyperparameter -> "log" or "lin", for the hyperparameters whose scale is known.

    Returns:
        Title -> PNG file; the other formats are beside it.
    """
    folder.mkdir(exist_ok=True)
    figures = {
        "Learning curves": ("learning_curves", learning_curves(found, threshold)),
        "Performance profile": ("performance_profile", performance_profile(found)),
    }
    if len(found) > 1:
        figures["Probability of improvement"] = ("improvement", improvement(found))
    for name in found[0].point:
        if len({show(s.point[name]) for s in found}) > 1:
            drawn = sensitivity(found, name, (scales or {}).get(name))
            figures[f"Sensitivity to {name}"] = (f"sensitivity_{name}", drawn)
    paths = {}
    for title, (file, figure) in figures.items():
        paths[title] = folder / f"{file}.png"
        for format in style.FORMATS:
            name = f"{folder.name}/{file}.{format}"
            with manifest.replacing(folder.parent, name) as picture:
                style.save(figure, picture, format)
    return paths


@style.styled
def learning_curves(found: Sequence[Setting], threshold: float | None) -> Any:
    """Interquartile mean of the training return with its interval; a panel per environment."""
    count = len(found[0].results)
    columns, rows = min(count, 2), math.ceil(count / 2)
    size = (8.0, 4.8) if count == 1 else (10.0, min(3.6 * rows + 0.8, 14))
    figure, grid = style.figure(rows, columns, size=size)
    for panel, axes in enumerate(grid[:count]):
        results = [s.results[panel] for s in found]
        for rank, result in enumerate(results):
            _curve(axes, result, found[rank].short, rank)
        value = results[0].threshold(threshold)
        if value is not None:
            style.threshold(axes, value)
        seeds = len(results[0].seeds)
        title = f"{results[0].env}, {seeds} seed{'s' * (seeds > 1)}"
        style.label(axes, title=title, x=STEPS, y=RETURN)
        axes.xaxis.set_major_formatter(style.short)
    for axes in grid[count:]:
        axes.set_axis_off()
    _legend(figure, found)
    return figure


@style.styled
def performance_profile(found: Sequence[Setting]) -> Any:
    """The fraction of runs that score above each threshold."""
    figure, (axes,) = style.figure(size=(8.0, 4.8))
    scores = np.concatenate([x for s in found for x in s.strata])
    margin = 0.03 * (np.ptp(scores) or 1.0)
    thresholds = np.linspace(scores.min() - margin, scores.max() + margin, 101)
    for rank, setting in enumerate(found):
        strata, band = setting.strata, None
        if rank < BANDS and _enough(setting):
            above = [statistics.above(x, thresholds) for x in strata]
            band = statistics.interval(above, statistics.mean)
        fraction = statistics.performance_profile(strata, thresholds)
        style.line(axes, thresholds, fraction, rank=rank, name=setting.short, band=band)
    style.label(axes, x=f"threshold of the {_score(found)}", y="fraction of runs above it")
    axes.set_ylim(-0.02, 1.02)
    _legend(figure, found)
    return figure


@style.styled
def improvement(found: Sequence[Setting]) -> Any:
    """The probability that a run of the best configuration scores higher than one of another."""
    best, others = found[0], found[1 : PAIRS + 1]
    names = [style.wrapped(s.short, 44) for s in others]
    lines = sum(name.count("\n") + 1 for name in names)
    figure, (axes,) = style.figure(size=(8.0, 1.6 + 0.24 * max(lines, 1.4 * len(others))))
    for i, other in enumerate(others):
        pair = [*best.strata, *other.strata]
        if _enough(best) and _enough(other):
            ends = statistics.interval(pair, statistics.probability_of_improvement)
            axes.plot(
                ends, [i, i], color=style.colour(0), linewidth=6, alpha=0.35, solid_capstyle="butt"
            )
        axes.plot(
            statistics.probability_of_improvement(*pair), i, "o", color=style.colour(0), zorder=3
        )
    style.threshold(axes, 0.5, vertical=True)
    axes.set_yticks(range(len(others)), names, parse_math=False)
    axes.set_ylim(len(others) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    style.label(
        axes, title=f"Best: {best.short}", x="probability that a run of the best one scores higher"
    )
    return figure


@style.styled
def sensitivity(found: Sequence[Setting], name: str, scale: str | None = None) -> Any:
    """The score of every configuration against one hyperparameter; the line is the mean at a value.

    Values that are not finite numbers have evenly spaced places, in the order in which they were
    given.

    Args:
        found: configurations, the best first.
        name: name of the hyperparameter.
        scale: scale of the axis, "log" or "lin", if it is known; None if the values decide.
    """
    figure, (axes,) = style.figure(size=(8.0, 4.5))
    values = [s.point[name] for s in found]
    given = [s.point[name] for s in sorted(found, key=lambda s: s.number)]
    numeric = all(
        isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values
    )
    words = [*dict.fromkeys(map(show, given))]
    x = np.array([float(v) if numeric else words.index(show(v)) for v in values])
    middle = np.array([statistics.interquartile_mean(*s.strata) for s in found])
    _scores(axes, found, x, middle)
    places = np.unique(x)
    if numeric and (len(places) < len(x) or len(x) <= style.NAMED):
        means = [middle[x == p].mean() for p in places]
        axes.plot(places, means, color=style.colour(1), label="mean over configurations")
    if numeric:
        style.scale_axis(axes, values, scale)
    else:
        axes.set_xticks(range(len(words)), words, parse_math=False)
    style.label(axes, x=name, y=f"{_score(found)}, IQM over seeds")
    style.legend(figure)
    return figure


def _scores(axes: Any, found: Sequence[Setting], x: np.ndarray, middle: np.ndarray) -> None:
    """A dot per configuration with its interval; of few seeds, the score of each seed instead."""
    name = "one configuration" + (", 95 % interval" if all(map(_enough, found)) else "")
    axes.plot(x, middle, "o", color=style.colour(0), alpha=0.8, label=name)
    for place, centre, setting in zip(x, middle, found, strict=True):
        if _enough(setting):
            low, high = statistics.interval(setting.strata)
            around = [[max(centre - low, 0.0)], [max(high - centre, 0.0)]]
            axes.errorbar([place], [centre], around, fmt="none", ecolor=style.colour(0), alpha=0.6)
        else:
            scores = np.concatenate(setting.strata)
            axes.plot([place] * len(scores), scores, ".", color=style.colour(0), alpha=0.35)


@style.styled
def comparison(pairs: Sequence[tuple[str, PointResult]]) -> Any:
    """The learning curves of results from different sweeps on one figure."""
    figure, (axes,) = style.figure(size=(8.0, 4.8))
    for rank, (name, result) in enumerate(pairs):
        _curve(axes, result, name, rank)
    title = " / ".join(dict.fromkeys(r.env for _, r in pairs))
    style.label(axes, title=title, x=STEPS, y=RETURN)
    axes.xaxis.set_major_formatter(style.short)
    style.legend(figure, width=100)
    return figure


def _curve(axes: Any, result: PointResult, name: str, rank: int) -> None:
    """A line with its interval; of few seeds, with the runs."""
    curve, band, runs = result.curve, None, None
    if rank < BANDS and len(curve) >= style.MIN_SEEDS:
        band = statistics.interval([curve])
    elif 1 < len(curve) < style.MIN_SEEDS:
        runs = curve
    middle = statistics.interquartile_mean(curve)
    style.line(axes, result.env_step, middle, rank=rank, name=name, runs=runs, band=band)


def _enough(setting: Setting) -> bool:
    """Whether there are enough seeds for an interval."""
    return min(map(len, setting.strata)) >= style.MIN_SEEDS


def _score(found: Sequence[Setting]) -> str:
    return NORMALISED if len(found[0].results) > 1 else SCORE


def _legend(figure: Any, found: Sequence[Setting]) -> None:
    if len(found) > 1:
        style.legend(figure, others=max(0, len(found) - style.NAMED))
