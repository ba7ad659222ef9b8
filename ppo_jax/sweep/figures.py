"""The figures of a sweep, each a function of its results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo_jax.analysis import statistics
from ppo_jax.config.options import show
from ppo_jax.runs import manifest
from ppo_jax.sweep.results import PointResult, Setting

# Lines that can be told apart; what ranks below is drawn without a name.
NAMED = 8
PAIRS = 12
DPI = 110


def draw(found: Sequence[Setting], threshold: float | None, folder: Path) -> dict[str, Path]:
    """All figures that the settings of a sweep allow: title -> PNG.

    Args:
        found: best first.
        threshold: the return to be reached; None: each environment's own.
        folder: for the files; the manifest is in the one around it.
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
            figures[f"Sensitivity to {name}"] = (f"sensitivity_{name}", sensitivity(found, name))
    paths = {}
    for title, (file, figure) in figures.items():
        paths[title] = folder / f"{file}.png"
        with manifest.replacing(folder.parent, f"{folder.name}/{file}.png") as picture:
            figure.savefig(picture, dpi=DPI, format="png")
    return paths


def learning_curves(found: Sequence[Setting], threshold: float | None) -> Any:
    """Interquartile mean of the return in training with its interval; a panel per environment."""
    count = len(found[0].results)
    figure = _figure(4.2 if count == 1 else 3.6 * -(-count // 2), wide=count > 1)
    grid = figure.subplots(-(-count // 2), min(count, 2), squeeze=False).flat
    for panel, axes in zip(range(count), grid, strict=False):
        results = [s.results[panel] for s in found]
        for rank in reversed(range(len(found))):
            _curve(axes, results[rank], found[rank].short, rank)
        mark = results[0].threshold(threshold)
        if mark is not None:
            axes.axhline(mark, color="black", linewidth=0.8, linestyle="--", alpha=0.6)
        seeds = len(results[0].seeds)
        axes.set(title=f"{results[0].env}, {seeds} seeds", xlabel="environment steps")
        axes.set(ylabel="episode return in training")
    for axes in list(grid):
        axes.set_axis_off()
    _legend(figure, found)
    return figure


def performance_profile(found: Sequence[Setting]) -> Any:
    """The share of runs that end above a score, for every score."""
    figure = _figure()
    axes = figure.subplots()
    scores = np.concatenate([x for s in found for x in s.strata])
    margin = 0.03 * (np.ptp(scores) or 1.0)
    marks = np.linspace(scores.min() - margin, scores.max() + margin, 101)
    for rank in reversed(range(len(found))):
        strata, colour = found[rank].strata, _colour(rank)
        share = statistics.performance_profile(strata, marks)
        axes.plot(marks, share, color=colour, linewidth=1.6 if rank < NAMED else 0.6)
        if rank < NAMED:
            above = [statistics.above(x, marks) for x in strata]
            axes.fill_between(
                marks, *statistics.interval(above, statistics.mean), color=colour, alpha=0.15, lw=0
            )
    axes.set(xlabel=_score_name(found), ylabel="share of runs above", ylim=(-0.02, 1.02))
    _legend(figure, found)
    return figure


def improvement(found: Sequence[Setting]) -> Any:
    """P(a run of the best beats a run of another), with its interval."""
    best, others = found[0], found[1 : PAIRS + 1]
    figure = _figure(1.2 + 0.3 * len(others))
    axes = figure.subplots()
    for i, other in enumerate(others):
        pair = [*best.strata, *other.strata]
        low, high = statistics.interval(pair, statistics.probability_of_improvement)
        axes.plot([low, high], [i, i], color=_colour(0), linewidth=5, alpha=0.35)
        axes.plot(statistics.probability_of_improvement(*pair), i, "o", color=_colour(0))
    axes.axvline(0.5, color="black", linewidth=0.8, linestyle="--", alpha=0.6)
    axes.set_yticks(range(len(others)), [s.short for s in others], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlim=(-0.02, 1.02), xlabel=f"P({best.short} > other)")
    return figure


def sensitivity(found: Sequence[Setting], name: str) -> Any:
    """The score of every point against one hyperparameter; the line is the mean at a value.

    What is no number, None and infinity are places in the order in which they were given.
    """
    figure = _figure()
    axes = figure.subplots()
    values = [s.point[name] for s in found]
    given = [s.point[name] for s in sorted(found, key=lambda s: s.number)]
    numeric = all(
        isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values
    )
    words = [*dict.fromkeys(map(show, given))]
    x = np.array([float(v) if numeric else words.index(show(v)) for v in values])
    middle = np.array([statistics.interquartile_mean(*s.strata) for s in found])
    bounds = np.array([statistics.interval(s.strata) for s in found]).T
    around = np.abs(np.nan_to_num(bounds - middle))
    axes.errorbar(x, middle, around, fmt="o", color=_colour(0), alpha=0.6, markersize=4, lw=1)
    places = np.unique(x)
    if numeric and (len(places) < len(x) or len(x) <= NAMED):
        axes.plot(places, [middle[x == p].mean() for p in places], color=_colour(1))
    if not numeric:
        axes.set_xticks(range(len(words)), words)
    elif x.min() > 0 and x.max() / x.min() >= 20:
        axes.set_xscale("log")
    axes.set(xlabel=name, ylabel=f"{_score_name(found)}, IQM")
    return figure


def comparison(pairs: Sequence[tuple[str, PointResult]]) -> Any:
    """The learning curves of results from different sweeps on one figure."""
    figure = _figure()
    axes = figure.subplots()
    for rank, (name, result) in enumerate(pairs):
        _curve(axes, result, name, rank)
    axes.set(xlabel="environment steps", ylabel="episode return in training")
    axes.set_title(" / ".join(dict.fromkeys(r.env for _, r in pairs)))
    axes.legend(frameon=False, fontsize=8)
    return figure


def _curve(axes: Any, result: PointResult, name: str, rank: int) -> None:
    """A line with its interval; of those without a name, a thin line alone."""
    curve, named = result.curve, rank < NAMED
    middle = statistics.interquartile_mean(curve)
    width = 1.6 if named else 0.5
    axes.plot(
        result.env_step, middle, color=_colour(rank), linewidth=width, label=name if named else None
    )
    if named:
        low, high = statistics.interval([curve])
        axes.fill_between(result.env_step, low, high, color=_colour(rank), alpha=0.15, linewidth=0)


def _score_name(found: Sequence[Setting]) -> str:
    if len(found[0].results) > 1:
        return "score (0: the sweep's worst, 1: its best)"
    return "score (mean return)"


def _colour(rank: int) -> str:
    return f"C{rank}" if rank < NAMED else "0.7"


def _legend(figure: Any, found: Sequence[Setting]) -> None:
    """Names below the panels; nothing where there is one line."""
    if len(found) == 1:
        return
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=_colour(i), label=s.short) for i, s in enumerate(found[:NAMED])]
    if len(found) > NAMED:
        lines.append(Line2D([], [], color="0.7", label=f"the {len(found) - NAMED} others"))
    longest = max(len(s.short) for s in found[:NAMED])
    columns = max(1, min(4, 110 // max(1, longest)))
    figure.legend(
        handles=lines, loc="outside lower center", ncols=columns, frameon=False, fontsize=7
    )


def _figure(height: float = 4.2, wide: bool = False) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10 if wide else 7, min(height, 12)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
