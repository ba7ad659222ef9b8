"""What the agents of a sweep reached: curves in equal parts of the run, scores, the table."""

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.analysis import statistics
from ppo_jax.config import TrainConfig
from ppo_jax.config.options import show
from ppo_jax.envs import canonical
from ppo_jax.experiment import MAY_BE_NAN
from ppo_jax.rollout import PROMISES
from ppo_jax.sweep.points import Point, label

# Means over the episodes of a part of the run, not over its updates.
BY_EPISODE = ("episode_return", "episode_length")
COUNTS = ("episodes", *PROMISES)
# Where evaluation is left out, the score is the return in this last share of the run.
LAST = 0.1
# What counts as solved: Gymnasium's registry of environments, and -200 for Pendulum, which has
# no mark there.
THRESHOLDS = {
    "CartPole-v1": 475.0,
    "CartPoleContinuous-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
    "Pendulum-v1": -200.0,
}


class PointResult(NamedTuple):
    """The agents of one point.

    Attributes:
        point: its values.
        config: the same as a whole configuration.
        seeds: the S seeds.
        env_step: [B] environment steps at the end of each part of the run.
        metrics: name -> [S, B], each the mean over a part of the run.
        score: [S] mean return of the episodes that count; see `penalise` for those that diverged.
        spread: [S] standard deviation of it over episodes.
        diverged: [S] bool: a number that has to be finite was not.
        cut: [S] episodes of the evaluation that did not end by themselves.
    """

    point: Point
    config: TrainConfig
    seeds: tuple[int, ...]
    env_step: np.ndarray
    metrics: dict[str, np.ndarray]
    score: np.ndarray
    spread: np.ndarray
    diverged: np.ndarray
    cut: np.ndarray

    @property
    def curve(self) -> np.ndarray:
        """[S, B] episode return; a part in which no episode ended repeats the one before."""
        return filled(self.metrics["episode_return"])

    @property
    def area(self) -> np.ndarray:
        """[S] area under the learning curve per environment step: the mean return in training;
        NaN where no episode ended."""
        return self.curve.mean(axis=1)

    @property
    def env(self) -> str:
        """Where it was trained."""
        return self.config.env

    def threshold(self, given: float | None = None) -> float | None:
        """The return to be reached: the given one, or the environment's own if it has one."""
        return THRESHOLDS.get(self.env.partition(":")[2] or self.env) if given is None else given

    def steps_to(self, threshold: float) -> np.ndarray:
        """[S] environment steps until the curve is there for the first time; infinite if never."""
        reached = np.nan_to_num(self.metrics["episode_return"], nan=-np.inf) >= threshold
        first = self.env_step[reached.argmax(axis=1)].astype(float)
        return np.where(reached.any(axis=1), first, math.inf)


class Setting(NamedTuple):
    """Points that differ in the environment alone: one strategy on every task.

    Attributes:
        number: of the first of its points.
        name: its values in words.
        short: name for figures: the values that differ between the settings, with as few digits as
            tell them apart.
        point: its values without the environment.
        results: one per environment.
        strata: the scores of each, [S]; where there are several environments, in units of the
            range from the sweep's worst (0) to its best (1).
        area: of the learning curves in the same units, mean over seeds and environments.
    """

    number: int
    name: str
    short: str
    point: Point
    results: tuple[PointResult, ...]
    strata: tuple[np.ndarray, ...]
    area: float

    @property
    def rank(self) -> tuple[float, float]:
        """What the best is chosen by: the final score, and among equals the area."""
        score = float(statistics.interquartile_mean(*self.strata))
        return round(score, 6), -math.inf if math.isnan(self.area) else self.area


def edges(updates: int, parts: int) -> np.ndarray:
    """[B + 1] where the parts of a run begin and end; an update each if there are fewer."""
    return np.linspace(0, updates, min(parts, updates) + 1).round().astype(int)


def binned(
    metrics: dict[str, np.ndarray], parts: int, counts: Collection[str] = COUNTS
) -> dict[str, np.ndarray]:
    """Metrics [S, U] as means over equal parts of the run, [S, B].

    Returns and lengths are means over the episodes of a part, metrics in `counts` are sums; NaN
    where a part has nothing to show.
    """
    cuts = edges(next(iter(metrics.values())).shape[1], parts)
    episodes = metrics["episodes"].astype(float)
    out = {}
    for name, x in metrics.items():
        weight = episodes if name in BY_EPISODE else ~np.isnan(x)
        total = _sums(np.where(weight > 0, x * weight, 0.0), cuts)
        if name in counts:
            out[name] = _sums(x.astype(float), cuts)
            continue
        count = _sums(weight, cuts)
        out[name] = np.where(count > 0, total / np.maximum(count, 1e-9), np.nan)
    return out


def _sums(x: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    parts = [x[:, a:b].sum(axis=1, dtype=float) for a, b in itertools.pairwise(cuts)]
    return np.stack(parts, axis=1)


def filled(curve: np.ndarray) -> np.ndarray:
    """[S, B] without gaps: the value before, or the first there is; gaps alone stay gaps."""
    known = np.isfinite(curve)
    last = np.maximum.accumulate(np.where(known, np.arange(curve.shape[1]), -1), axis=1)
    source = np.where(last >= 0, last, known.argmax(axis=1)[:, None])
    return np.take_along_axis(curve, source, axis=1)


def diverged(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """[S] whether a number that has to be finite is not, anywhere in the run."""
    wrong = [
        ~np.isfinite(x).all(axis=1) for n, x in metrics.items() if not n.startswith(MAY_BE_NAN)
    ]
    return np.any(wrong, axis=0)


def last_returns(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """[S] mean return of the episodes in the last tenth of training; NaN if none ended there."""
    start = math.floor(metrics["episodes"].shape[1] * (1 - LAST))
    tail = {n: metrics[n][:, start:] for n in ("episodes", "episode_return")}
    return binned(tail, 1)["episode_return"][:, 0]


def scores(metrics: dict[str, np.ndarray], returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[S] mean and standard deviation of the greedy returns [S, E].

    Where E = 0, the mean return at the end of training, and NaN.
    """
    if returns.shape[1]:
        return returns.mean(axis=1), returns.std(axis=1)
    last = last_returns(metrics)
    return last, np.full_like(last, np.nan)


def penalise(results: Sequence[PointResult], seen: Sequence[PointResult] = ()) -> list[PointResult]:
    """Diverged agents at the worst that anything in their environment ever returned.

    They are counted, not dropped: leaving out failures flatters. So would the worst of those that
    did not fail, where all of these are perfect; the worst is therefore looked for in training too,
    at the beginning of which nobody can do anything.

    Args:
        results: to be penalised.
        seen: further results to look for the worst in.
    """
    out = []
    for r in results:
        known = [
            x
            for o in (*results, *seen)
            if canonical(o.env) == canonical(r.env)
            for x in (o.score, o.metrics["episode_return"])
        ]
        finite = np.concatenate([x[np.isfinite(x)].ravel() for x in known])
        worst = finite.min() if len(finite) else 0.0
        failed = r.diverged | ~np.isfinite(r.score)
        out.append(r._replace(score=np.where(failed, worst, r.score)))
    return out


def settings(results: Sequence[PointResult]) -> list[Setting]:
    """The points by what they have in common over environments, best first."""
    groups: dict[str, list[PointResult]] = {}
    for r in results:
        groups.setdefault(label(_without_env(r.point)), []).append(r)
    ranges = {r.env: _range([x for x in results if x.env == r.env]) for r in results}
    several = len(ranges) > 1
    found = []
    # Only what was tried everywhere.
    groups = {name: members for name, members in groups.items() if len(members) == len(ranges)}
    names = short_names([_without_env(members[0].point) for members in groups.values()])
    for short, (name, members) in zip(names, groups.items(), strict=True):
        units = [ranges[r.env] if several else (0.0, 1.0) for r in members]
        strata = [(r.score - low) / size for r, (low, size) in zip(members, units, strict=True)]
        area = np.mean(
            [(r.area.mean() - low) / size for r, (low, size) in zip(members, units, strict=True)]
        )
        number = next(i for i, r in enumerate(results) if r is members[0])
        point = _without_env(members[0].point)
        parts = (tuple(members), tuple(strata), float(area))
        found.append(Setting(number, name, short, point, *parts))
    return sorted(found, key=lambda s: s.rank, reverse=True)


def short_names(points: Sequence[Point]) -> list[str]:
    """Names of points for figures and tables: "learning_rate=0.0005, gamma=0.99".

    Values that all points share are left out, and real numbers have as few digits, but at least
    three, as tell the points apart.

    Args:
        points: the values of each point; no two are equal.
    """
    fields = [*dict.fromkeys(n for p in points for n in p)]
    differ = [n for n in fields if len({show(p.get(n)) for p in points}) > 1]
    names = [label(p) for p in points]
    if not differ:
        return names
    for digits in (3, 4, 5, 6):
        shorter = [
            ", ".join(f"{n}={_digits(p[n], digits)}" for n in differ if n in p) for p in points
        ]
        if len({*shorter}) == len(shorter):
            return shorter
    return names


def _digits(value: Any, digits: int) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else show(value)


def _without_env(point: Point) -> Point:
    return {n: v for n, v in point.items() if n != "env"}


def _range(results: Sequence[PointResult]) -> tuple[float, float]:
    """(lowest score, distance to the highest)"""
    scores = np.concatenate([r.score for r in results])
    return float(scores.min()), float(np.ptp(scores)) or 1.0


def table(results: Sequence[PointResult], threshold: float | None = None) -> list[dict[str, Any]]:
    """A row per point: what it is, and what people paste.

    Args:
        results: in any order.
        threshold: the return to be reached; None: each environment's own.
    """
    return [{"point": i, **r.point, **row(r, threshold)} for i, r in enumerate(results)]


def row(result: PointResult, threshold: float | None = None) -> dict[str, Any]:
    """Mean, IQM with its interval, median, area, steps to the threshold and who reached it."""
    score = result.score
    low, high = statistics.interval([score])
    mark = result.threshold(threshold)
    out: dict[str, Any] = {
        "env": result.env,
        "seeds": len(score),
        "diverged": int(result.diverged.sum()),
        "mean": _round(score.mean()),
        "iqm": _round(statistics.interquartile_mean(score)),
        "ci95_low": _round(low),
        "ci95_high": _round(high),
        "median": _round(np.median(score)),
        "min": _round(score.min()),
        "area": _round(result.area.mean()),
        "threshold": mark,
        "steps_to_threshold": None,
        "share_reached": None,
    }
    if mark is not None:
        steps = result.steps_to(mark)
        middle = float(np.median(steps))
        out["share_reached"] = round(float(np.isfinite(steps).mean()), 4)
        out["steps_to_threshold"] = int(middle) if math.isfinite(middle) else None
    return out


def _round(x: Any) -> float | None:
    """Five significant digits; None for what there is not."""
    return float(f"{float(x):.5g}") if math.isfinite(x) else None
