"""Learning curves of runs, sweeps and folders of runs on one figure: `ppo-jax plot`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ppo_jax.analysis import statistics, style
from ppo_jax.analysis.curves import Curve, curves
from ppo_jax.analysis.read import read
from ppo_jax.config import ConfigError
from ppo_jax.runs import terminal
from ppo_jax.runs.trust import Given

AXES = {
    "seconds": "wall-clock time of training (s)",
    "updates": "updates",
}
UNITS = {
    "episode_length": "steps",
    "episode_length_max": "steps",
    "entropy": "nats",
    "approx_kl": "nats",
    "kl": "nats",
}
# Panels beside each other.
COLUMNS = 3


@style.styled
def draw(found: Sequence[Curve], x: str) -> Any:
    """The figure: a panel per environment or stage, a line per configuration.

    With `style.MIN_SEEDS` runs or more, the line is their mean, with a 95 % bootstrap interval.
    With fewer, the runs themselves are drawn as thin lines.

    Args:
        found: curves as `curves` returns them.
        x: quantity on the horizontal axis: "steps", "seconds" or "updates".
    """
    panels: dict[str, list[Curve]] = {}
    for curve in found:
        panels.setdefault(curve.env, []).append(curve)
    ranks = _ranks([*panels.values()])
    columns = min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    size = (8.0, 4.8) if columns == 1 else (1 + 4.2 * columns, 0.8 + 3.4 * rows)
    figure, grid = style.figure(rows, columns, size=size)
    for axes, (env, here) in zip(grid, panels.items(), strict=False):
        for curve in here:
            _draw_curve(axes, curve, ranks[curve.label])
        across = AXES.get(x, terminal.UNITS[here[0].unit])
        style.label(axes, title=_title(env, found), x=across, y=_quantity(here))
        axes.set_xlim(0, max(curve.x[-1] for curve in here))
        axes.xaxis.set_major_formatter(style.short)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if len(found) > 1 or len(found[0].values) > 1:
        style.legend(figure, others=max(0, len(ranks) - style.NAMED))
    return figure


def _ranks(panels: Sequence[Sequence[Curve]]) -> dict[str, int]:
    """The rank of each label; the best curves of all panels come first, and have colours."""
    labels: dict[str, int] = {}
    for place in range(max(map(len, panels))):
        for here in panels:
            if place < len(here):
                labels.setdefault(here[place].label, len(labels))
    return labels


def _name(curve: Curve) -> str:
    """The name of a curve in the legend."""
    seeds = len(curve.values)
    if seeds == 1:
        return curve.label
    return f"{curve.label} ({seeds} seeds)"


def _quantity(here: Sequence[Curve]) -> str:
    """The name and unit of the vertical axis, and what a line and a band are."""
    metric = here[0].metric
    words = metric.replace("_", " ") + (f" ({UNITS[metric]})" if metric in UNITS else "")
    most = max(len(curve.values) for curve in here)
    if most >= style.MIN_SEEDS:
        return f"{words}, mean and 95 % interval"
    return f"{words}, mean over seeds" if most > 1 else words


def _title(env: str, found: Sequence[Curve]) -> str:
    """The environment, and what is drawn if a single curve has no legend."""
    return f"{env}, {found[0].label}" if len(found) == 1 else env


def _draw_curve(axes: Any, curve: Curve, rank: int) -> None:
    seeds = len(curve.values)
    if seeds >= style.MIN_SEEDS:
        band = statistics.interval([curve.values], statistics.mean)
        style.line(axes, curve.x, curve.middle, rank=rank, name=_name(curve), band=band)
    else:
        runs = curve.values if seeds > 1 else curve.raw
        style.line(axes, curve.x, curve.middle, rank=rank, name=_name(curve), runs=runs)


def plot(
    runs: tuple[Path, ...],
    out: Path = Path("comparison"),
    *,
    metric: str | None = None,
    x: Literal["steps", "seconds", "updates"] = "steps",
    smooth: float = 0.05,
    env: str | None = None,
    policy: str | None = None,
    algorithm: str | None = None,
    trust: bool = False,
) -> int:
    """Draw learning curves of runs and sweeps, one for all seeds of a configuration.

    Args:
        runs: Run directories of agents and of stages of language models, sweeps, and folders that
            contain them.
        out: Name of the figure. An ending of .png, .pdf or .svg selects the format; without an
            ending, the figure is written in all three.
        metric: Name of the metric: a column of metrics.jsonl, such as episode_return, entropy,
            approx_kl or eval_loss. By default it is episode_return for agents, and for language
            models loss (sft), accuracy (reward) or objective (ppo).
        x: Horizontal axis: environment steps (for language models, responses or sequences),
            wall-clock seconds of training without compilation, or updates.
        smooth: Fraction of the curve that the moving average spans, from 0 (no smoothing) to 0.5.
        env: Environment of the runs, named again as MODULE:NAME. It is needed where a run that was
            made by somebody else names code to import.
        policy: Network of the runs, named again as MODULE:NAME.
        algorithm: Algorithm of the runs, named again as MODULE:NAME.
        trust: Trust the runs: import the code that they name.

    Returns:
        Exit code 0.
    """
    _check(runs, out, smooth)
    found = read(runs, metric, x, Given(env, policy, algorithm, trust))
    drawn = curves(found, smooth)
    figure = draw(drawn, x)
    files = [out] if out.suffix else [out.with_name(f"{out.name}.{f}") for f in style.FORMATS]
    for file in files:
        style.write(figure, file)
    terminal.say(_table(drawn))
    names = ", ".join(map(str, files))
    terminal.say(
        f"wrote {names}: {_count(found, 'run')} as {_count(drawn, 'curve')}.{_explained(drawn)}"
    )
    return 0


def _explained(drawn: Sequence[Curve]) -> str:
    """What bands and thin lines mean."""
    seeds = [len(curve.values) for curve in drawn]
    words = ""
    if max(seeds) >= style.MIN_SEEDS:
        words += " Bands are 95 % bootstrap intervals of the mean over seeds."
    if any(1 < n < style.MIN_SEEDS for n in seeds):
        words += (
            f" With fewer than {style.MIN_SEEDS} seeds, thin lines are single runs and no interval "
            "is drawn."
        )
    return words


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _check(runs: Sequence[Path], out: Path, smooth: float) -> None:
    """Refuse before reading what would fail only after it."""
    if not runs:
        raise ConfigError("no runs are given; write ppo-jax plot RUN [RUN ...]")
    if not 0 <= smooth <= 0.5:
        raise ConfigError(f"--smooth is {smooth}; it must be >= 0 and <= 0.5")
    endings = [f".{f}" for f in style.FORMATS]
    if out.suffix and out.suffix.lower() not in endings:
        raise ConfigError(
            f"--out is {out}; its name must end in {', '.join(endings)}, or have no ending for all "
            "three"
        )
    if not out.name or out.is_dir():
        raise ConfigError(f"--out is {out}, which is a directory; add the name of the figure")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out is {out}; there is no directory {out.absolute().parent}")


def _table(found: Sequence[Curve]) -> Any:
    """Mean of the last tenth of each curve, and its standard deviation over seeds."""
    from rich.table import Table

    metrics = ", ".join(dict.fromkeys(curve.metric for curve in found))
    table = Table(title=f"{metrics}, mean of the last tenth")
    several = len({curve.env for curve in found}) > 1
    kind = "environment" if {c.unit for c in found} == {"env_steps"} else "task"
    for name in (kind,) * several + ("configuration",):
        table.add_column(name)
    for name in ("seeds", "mean", "standard deviation"):
        table.add_column(name, justify="right")
    for curve in found:
        last = curve.values[:, -max(1, curve.values.shape[1] // 10) :].mean(axis=1)
        spread = f"{last.std(ddof=1):.4g}" if len(last) > 1 else ""
        names = (curve.env,) * several + (curve.label,)
        table.add_row(*names, str(len(last)), f"{last.mean():.4g}", spread)
    return table
