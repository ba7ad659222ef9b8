"""Learning curves of several runs on one figure; runs that differ in the seed alone are one curve.

`python -m ppo_jax.analysis.plot RUN...` is this.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ppo_jax import config as configs
from ppo_jax.analysis import statistics
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.config.options import did_you_mean
from ppo_jax.runs import manifest, metrics_log, terminal
from ppo_jax.runs.folder import read_config
from ppo_jax.runs.trust import NOTHING, Given

BINS = 200
FORMATS = (".png", ".svg", ".pdf")
# Of metrics.jsonl, what a curve is drawn against and not what is drawn.
POSITIONS = ("update", "env_step")
# Differences of configurations that say nothing about what was learnt.
UNNAMED = ("seed", "total_timesteps")
# Told apart by people with colour-blindness too (Okabe and Ito), the darker ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
LABEL_WIDTH = 60


class Run(NamedTuple):
    """A run as it is read: its configuration, and columns of its log."""

    path: Path
    config: TrainConfig
    columns: dict[str, np.ndarray]


class Curve(NamedTuple):
    """Runs that differ in the seed alone.

    Attributes:
        label: what the others have otherwise.
        x: [B] positions.
        values: [S, B] a row per run, smoothed.
        raw: [S, B] the same as it is.
    """

    label: str
    x: np.ndarray
    values: np.ndarray
    raw: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """[B] mean over runs."""
        return self.values.mean(axis=0)


def read_run(path: Path, metric: str, x: str, given: Given = NOTHING) -> Run:
    """The configuration of a run, and three columns of its log: x, the metric, its weight.

    Args:
        path: run directory.
        metric: name of a column.
        x: env_step or seconds (of training, compilation left out).
        given: names that stand beside those of the run, and whether it is trusted.

    Raises:
        ConfigError: it is no run, it names code and is not the user's own, nothing is logged, or
            there is no such metric.
    """
    if (path / "sweep.json").is_file():
        raise ConfigError(
            f"{path} is a sweep, whose report.html has its curves; compare sweeps with python -m "
            "ppo_jax.sweep --compare"
        )
    config = read_config(path, given)
    manifest.look(path)
    rows = list(metrics_log.read_metrics(path / "metrics.jsonl"))
    if not rows:
        raise ConfigError(f"nothing to plot: {path} has no rows in metrics.jsonl yet")
    known = [n for n in dict.fromkeys(n for row in rows for n in row) if n not in POSITIONS]
    if metric not in known:
        raise ConfigError(f"{path} has no metric {metric!r}; {did_you_mean(metric, known)}")
    column = {n: _column(rows, n) for n in ("env_step", "steps_per_second", "episodes", metric)}
    found = {"metric": column[metric], "x": column["env_step"]}
    if x == "seconds":
        found["x"] = np.cumsum(np.diff(column["env_step"], prepend=0) / column["steps_per_second"])
    # The mean over the episodes of a stretch is that of its updates, weighted by their number.
    found["weight"] = column["episodes"] if metric.startswith("episode_") else np.ones(len(rows))
    real = np.isfinite(found["metric"]) & np.isfinite(found["x"]) & (found["weight"] > 0)
    if not real.any():
        raise ConfigError(f"nothing to plot: in {path}, {metric} never has a value")
    return Run(path, config, {n: v[real] for n, v in found.items()})


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([math.nan if row.get(name) is None else row[name] for row in rows], float)


def curves(runs: Sequence[Run], smooth: float = 0.0) -> list[Curve]:
    """Runs on common positions, grouped; those that end highest first.

    Args:
        runs: as read.
        smooth: share of a curve that its moving mean spans.

    Returns:
        Curves; each as long as the shortest of its runs.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str({**_flat(run), "seed": None}), []).append(run)
    labels = _labels([group[0] for group in groups.values()])
    found = [
        _curve(label, group, smooth) for label, group in zip(labels, groups.values(), strict=True)
    ]
    return sorted(found, key=lambda curve: -curve.middle[-1])


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
    return Curve(label, middle, values, raw)


def _binned(
    columns: dict[str, np.ndarray], edges: np.ndarray, middle: np.ndarray, window: int
) -> np.ndarray:
    """[B] weighted means of a run's values in B stretches; empty ones are interpolated."""
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


def _flat(run: Run) -> dict[str, Any]:
    return configs.to_flat(run.config)


def _labels(runs: Sequence[Run]) -> list[str]:
    """What tells configurations apart, in words: environment and algorithm, if they suffice."""
    flat = [_flat(run) for run in runs]
    names = [n for n in dict.fromkeys(n for f in flat for n in f) if n not in UNNAMED]
    differ = [n for n in names if len({str(f[n]) for f in flat if n in f}) > 1]
    words = [n for n in ("env", "algorithm") if n in differ]
    short = [", ".join(str(f[n]) for n in words) or f["algorithm"] for f in flat]
    if len({*short}) == len(short):
        return short
    others = [n for n in differ if n not in words]
    labels = []
    for f in flat:
        parts = [str(f[n]) for n in words]
        parts += [f"{n} {_text(f[n])}" for n in others if n in f]
        labels.append(", ".join(parts))
    shorter = [run.path.name for run in runs]
    if max(map(len, labels)) > LABEL_WIDTH and len({*shorter}) == len(shorter):
        return shorter
    if len({*labels}) < len(labels):
        return [f"{label} ({run.path})" for label, run in zip(labels, runs, strict=True)]
    return labels


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw(found: Sequence[Curve], title: str, metric: str, x: str) -> Any:
    """The figure: a line per curve; of several seeds each of them thinly, and an interval.

    Args:
        found: curves, in the order of their names.
        title: above it.
        metric: what is drawn.
        x: against what.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for k in reversed(range(len(found))):
        _draw_curve(axes, found[k], COLOURS[k % len(COLOURS)], "-" if k < len(COLOURS) else "--")
    # A "$" in a name is no formula.
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", parse_math=False)
    axes.set_xlabel("seconds of training" if x == "seconds" else "environment steps")
    axes.set_ylabel(metric.replace("_", " "))
    axes.set_xlim(0, max(curve.x[-1] for curve in found))
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2, linewidth=0.6)
    axes.tick_params(color="0.6")
    if len(found) > 1:
        handles, labels = axes.get_legend_handles_labels()
        columns = max(1, 100 // (max(map(len, labels)) + 8))
        legend = figure.legend(
            handles[::-1], labels[::-1], frameon=False, fontsize=9, ncols=min(columns, len(labels)),
            loc="outside lower center",
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _draw_curve(axes: Any, curve: Curve, colour: str, style: str) -> None:
    seeds = len(curve.values)
    label = f"{curve.label} ({seeds} seeds)" if seeds > 1 else curve.label
    axes.plot(curve.x, curve.middle, style, color=colour, linewidth=1.8, label=label)
    behind = curve.values if seeds > 1 else curve.raw
    axes.plot(curve.x, behind.T, color=colour, linewidth=0.6, alpha=0.3)
    if seeds > 2:
        low, high = statistics.interval([curve.values], statistics.mean)
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.18, linewidth=0)


def _short(value: float) -> str:
    """1500000 as 1.5M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def plot(
    runs: tuple[Path, ...],
    out: Path = Path("comparison.png"),
    *,
    metric: str = "episode_return",
    x: Literal["env_step", "seconds"] = "env_step",
    smooth: float = 0.05,
    env: str | None = None,
    policy: str | None = None,
    algorithm: str | None = None,
    trust: bool = False,
) -> int:
    """Draw the learning curves of runs; those that differ in the seed alone become one curve.

    Args:
        runs: run directories.
        out: the figure, .png, .svg or .pdf.
        metric: a column of metrics.jsonl: episode_return, entropy, approx_kl, ...
        x: what it is drawn against: environment steps, or seconds of training.
        smooth: share of the curve that a moving mean spans, from 0 (none) to 0.5.
        env: environment of the runs, named again as MODULE:NAME: a run of somebody else may not
            make this process import it.
        policy: network of the runs, named again.
        algorithm: algorithm of the runs, named again.
        trust: let the run name any code to import.

    Returns:
        Exit code 0.
    """
    _check(runs, out, smooth)
    given = Given(env, policy, algorithm, trust)
    paths = {p.resolve(): p for p in runs}.values()
    read = [read_run(path, metric, x, given) for path in paths]
    found = curves(read, smooth)
    same = {run.config.env for run in read}
    title = f"{metric.replace('_', ' ')}: {', '.join(sorted(same))}"
    if len({run.config.algorithm for run in read}) == 1:
        title += f", {read[0].config.algorithm}"
    draw(found, title, metric, x).savefig(out, dpi=150)
    terminal.say(_table(found, metric))
    bands = (
        " Bands are 95 % intervals of the mean." if max(len(c.values) for c in found) > 2 else ""
    )
    terminal.say(f"wrote {out}: {_count(read, 'run')} as {_count(found, 'curve')}.{bands}")
    return 0


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _check(runs: Sequence[Path], out: Path, smooth: float) -> None:
    """Refuse what would fail only after reading."""
    if not runs:
        raise ConfigError("no runs given: python -m ppo_jax.analysis.plot RUN [RUN ...]")
    if not 0 <= smooth <= 0.5:
        raise ConfigError(f"--smooth is {smooth}; it must be >= 0 and <= 0.5")
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out is {out}; its name must end in {', '.join(FORMATS)}")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out is {out}; there is no directory {out.absolute().parent}")


def _table(found: Sequence[Curve], metric: str) -> Any:
    """Where the curves end: the mean of their last tenth, and its spread over seeds."""
    from rich.table import Table

    table = Table(title=f"{metric}, mean of the last tenth")
    for name, justify in (
        ("curve", "left"),
        ("runs", "right"),
        ("mean", "right"),
        ("std", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for curve in found:
        last = curve.values[:, -max(1, curve.values.shape[1] // 10) :].mean(axis=1)
        spread = f"{np.std(last, ddof=1):.4g}" if len(last) > 1 else ""
        table.add_row(curve.label, str(len(last)), f"{last.mean():.4g}", spread)
    return table
