"""The style that all figures of the package share.

A figure has a light neutral ground of its own, so that it can be read on a light and on a dark
page; a PDF file has a white one, for print. The colours can be distinguished by readers with colour
vision deficiencies (tests/test_style.py computes the distances). Files are deterministic: the same
data give the same bytes, because no file contains a time stamp or a random identifier.
"""

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

GROUND = "#F4F4F1"
INK = "#26262B"
LINES = "#8A8A84"
# Colours of the named lines, in the order in which they are used.
PALETTE = (
    "#2C3894", "#C67B00", "#089865", "#9D7CB0", "#850F15", "#8481E9", "#472D4E", "#1E044E",
)  # fmt: skip
NAMED = len(PALETTE)
# Colour of the lines that have no name, because there are more lines than colours.
OTHERS = "#A6A6A0"
# Bootstrap intervals from fewer seeds cover far less than they claim (tests/test_statistics.py).
MIN_SEEDS = 5
DPI = 120
FORMATS = ("png", "pdf", "svg")
# Entries that are None are left out of the file: the date, and the version of matplotlib.
METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}
RC: dict[Any, Any] = {
    "figure.facecolor": GROUND,
    "figure.dpi": DPI,
    "axes.facecolor": "none",
    "axes.edgecolor": LINES,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": LINES,
    "ytick.color": LINES,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.prop_cycle": f"cycler('color', {list(PALETTE)})",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DCDCD6",
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "text.usetex": False,
    "svg.hashsalt": "ppo_jax",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a function that draws use the style, whatever matplotlib's settings are around it."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return wrapper


@styled
def figure(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float] = (8.0, 4.5),
    heights: Sequence[float] | None = None,
) -> tuple[Any, list[Any]]:
    """A new figure and its panels, from left to right and from top to bottom.

    Args:
        rows: number of rows of panels.
        columns: number of columns of panels.
        size: width and height in inches.
        heights: relative heights of the rows; None: equal ones.
    """
    from matplotlib.figure import Figure

    new = Figure(figsize=size, layout="constrained")
    return new, [*new.subplots(rows, columns, squeeze=False, height_ratios=heights).flat]


def colour(rank: int) -> str:
    """The colour of the line with this rank; grey if there are more lines than colours."""
    return PALETTE[rank] if rank < NAMED else OTHERS


@styled
def label(axes: Any, *, title: str = "", x: str = "", y: str = "") -> None:
    """Write the title and the names of the axes; a "$" in them does not begin a formula.

    Args:
        axes: the panel.
        title: title above the panel.
        x: name and unit of the horizontal axis.
        y: name and unit of the vertical axis.
    """
    for setter, text in ((axes.set_title, title), (axes.set_xlabel, x), (axes.set_ylabel, y)):
        if text:
            setter(text, parse_math=False)


def short(value: float, _: Any = None) -> str:
    """A number of an axis with a decimal prefix: 1500000 becomes "1.5M"."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


@styled
def line(
    axes: Any,
    x: np.ndarray,
    middle: np.ndarray,
    *,
    rank: int,
    name: str,
    runs: np.ndarray | None = None,
    band: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Draw a named line, and behind it either an interval or the runs that it summarises.

    Args:
        axes: the panel.
        x: positions on the horizontal axis, [B].
        middle: values of the line, [B].
        rank: number of the line, which selects its colour. From `NAMED` on, the line is thin and
            grey and has no name in the legend.
        name: name of the line in the legend.
        runs: values of the single runs, [S, B], drawn as thin lines.
        band: lower and upper ends of an interval, [B] each, drawn as a shaded band.
    """
    if rank >= NAMED:
        axes.plot(x, middle, color=OTHERS, linewidth=0.8, label="_other", zorder=1.5)
        return
    if runs is not None:
        axes.plot(x, np.transpose(runs), color=colour(rank), linewidth=0.8, alpha=0.4)
    if band is not None:
        axes.fill_between(x, *band, color=colour(rank), alpha=0.16, linewidth=0)
    axes.plot(x, middle, color=colour(rank), label=name, zorder=2.5 - rank / 100)


@styled
def threshold(axes: Any, value: float, *, vertical: bool = False, name: str = "") -> None:
    """Draw a threshold, or another reference value, as a dashed line across the panel.

    Args:
        axes: the panel.
        value: position of the line.
        vertical: whether it is a value of the horizontal axis.
        name: name of the line in the legend; without one it is not listed.
    """
    draw = axes.axvline if vertical else axes.axhline
    kind = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3)), "alpha": 0.7, "zorder": 1.2}
    draw(value, label=name or "_threshold", **kind)


@styled
def legend(target: Any, *, others: int = 0, width: int = 46) -> None:
    """Name the lines of all panels, once each, below the panels.

    Args:
        target: the figure.
        others: number of lines that have no name; they share one entry.
        width: number of characters after which a name is continued on the next line.
    """
    from matplotlib.lines import Line2D

    found: dict[str, Any] = {}
    for axes in target.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if others:
        found[f"{others} other{'s' * (others > 1)}"] = Line2D([], [], color=OTHERS, linewidth=0.8)
    names = [wrapped(name, width) for name in found]
    if not names:
        return
    lines = [name.count("\n") + 1 for name in names]
    longest = max(len(part) for name in names for part in name.split("\n"))
    columns = max(1, min(int(target.get_figwidth() * 14 // (longest + 7)), len(names)))
    rows = math.ceil(len(names) / columns)
    # A long legend makes the figure higher, and not the panels lower.
    target.set_figheight(target.get_figheight() + rows * (0.15 * max(lines) + 0.065) - 0.2)
    drawn = target.legend(
        [*found.values()],
        names,
        loc="outside lower center",
        ncols=math.ceil(len(names) / rows),
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def wrapped(name: str, width: int) -> str:
    """A name on several lines, none of them longer than `width` characters if a space allows it."""
    return "\n".join(
        textwrap.wrap(name, width, break_long_words=False, break_on_hyphens=False) or [name]
    )


def log_spaced(values: Sequence[float] | np.ndarray) -> bool:
    """Whether values are spaced evenly on a logarithmic scale rather than on a linear one.

    This is so where all values are positive, they span a factor of at least 4 (10 if there are only
    two), and the gaps between neighbours are more alike on the logarithmic scale.

    Args:
        values: numbers in any order; repeated ones count once.
    """
    x = np.unique(np.asarray(values, float))
    if len(x) < 2 or not np.isfinite(x).all() or x[0] <= 0:
        return False
    if len(x) == 2:
        return bool(x[1] / x[0] >= 10)
    return bool(x[-1] / x[0] >= 4 and _unevenness(np.log(x)) < _unevenness(x))


def _unevenness(x: np.ndarray) -> float:
    """The largest distance of sorted values from even spacing, as a fraction of their range."""
    even = np.linspace(x[0], x[-1], len(x))
    return float(np.abs(x - even).max() / (x[-1] - x[0]))


@styled
def log_axis(axes: Any, which: str) -> None:
    """Make an axis logarithmic, with labels at 1, 2 and 5 times a power of ten.

    Args:
        axes: the panel.
        which: name of the axis, "x" or "y".
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(short)
    axis.set_minor_formatter(NullFormatter())


@styled
def scale_axis(axes: Any, values: Sequence[float], scale: str | None = None) -> None:
    """Choose the scale and the ticks of a horizontal axis for the values of a hyperparameter.

    Zero beside log-spaced values is shown on an axis that is linear between zero and the smallest
    positive value.

    Args:
        axes: the panel.
        values: the values that were tried.
        scale: scale of the axis, "log" or "lin", if it is known; None if the values decide.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    x = np.unique(np.asarray(values, float))
    positive = x[x > 0]
    wanted = log_spaced(positive) if scale is None else scale == "log"
    log = wanted and len(positive) > 0 and bool(x[0] >= 0)
    if log and x[0] > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    elif log:
        axes.set_xscale("symlog", linthresh=float(positive[0]), linscale=0.5)
    gaps = np.diff(x) / (x[-1] - x[0]) if len(x) > 1 else np.ones(1)
    if len(x) <= NAMED and (log or gaps.min() >= 0.12):
        axes.xaxis.set_major_locator(FixedLocator([*x]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@styled
def save(drawn: Any, file: Any, format: str) -> None:
    """Write a figure; the same figure always gives the same bytes.

    Args:
        drawn: the figure.
        file: path, or a binary file that is open for writing.
        format: file format: "png", "pdf" or "svg".
    """
    ground = "white" if format == "pdf" else GROUND
    drawn.savefig(file, format=format, dpi=DPI, facecolor=ground, metadata=METADATA[format])


def write(drawn: Any, path: Path) -> None:
    """Write a figure to a file in the format that the ending of the file's name gives."""
    save(drawn, path, path.suffix.lower().removeprefix("."))
