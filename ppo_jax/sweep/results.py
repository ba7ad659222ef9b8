"""Results of the agents of a sweep: binned learning curves, scores and the result table."""

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
from ppo_jax.sweep.points import Overrides, label

# Metrics that are averaged over episodes, not over updates.
BY_EPISODE = ("episode_return", "episode_length")
COUNTS = ("episodes", *PROMISES)
# Without an evaluation, the score is the mean return in this last fraction of training.
LAST = 0.1
# Returns at which environments count as solved: from Gymnasium's registry, and -200 for Pendulum,
# which has no threshold there.
THRESHOLDS = {
    "CartPole-v1": 475.0,
    "CartPoleContinuous-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
    "Pendulum-v1": -200.0,
}


class PointResult(NamedTuple):
    """The results of the agents of one configuration.

    Attributes:
        point: the values that vary, by name.
        config: the whole configuration.
        seeds: the S seeds.
        env_step: [B] environment steps at the end of each bin of the learning curve.
        metrics: name -> [S, B], mean of a metric in each bin.
        score: [S] mean return of the evaluation; `penalise` replaces that of diverged agents.
        spread: [S] standard deviation of the return over episodes.
        diverged: [S] bool, whether a number that must be finite was not.
        cut: [S] number of evaluation episodes that did not end by themselves.
    """

    point: Overrides
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
        """[S, B] episode return; a bin without a finished episode repeats the previous value."""
        return filled(self.metrics["episode_return"])

    @property
    def area(self) -> np.ndarray:
        """[S] area under the learning curve per environment step, which is the mean return during
        training; NaN if no episode finished."""
        return self.curve.mean(axis=1)

    @property
    def env(self) -> str:
        """The name of the environment."""
        return self.config.env

    def threshold(self, given: float | None = None) -> float | None:
        """The given threshold, or the environment's default if it has one."""
        return THRESHOLDS.get(self.env.partition(":")[2] or self.env) if given is None else given

    def steps_to(self, threshold: float) -> np.ndarray:
        """[S] environment steps until the curve first reaches a threshold; infinite if never."""
        reached = np.nan_to_num(self.metrics["episode_return"], nan=-np.inf) >= threshold
        first = self.env_step[reached.argmax(axis=1)].astype(float)
        return np.where(reached.any(axis=1), first, math.inf)


class Setting(NamedTuple):
    """The configurations that differ only in their environments: one strategy on all of them.

    Attributes:
        number: index of the first of its configurations.
        name: its values as text.
        short: name for figures: the values that differ between the settings, with as few digits as
            distinguish them.
        point: its values without the environment.
        results: one result per environment.
        strata: scores on each environment, [S]; with several environments, they are scaled to the
            range from the worst agent of the sweep (0) to the best (1).
        area: area under the learning curves in the same units, mean over seeds and environments.
    """

    number: int
    name: str
    short: str
    point: Overrides
    results: tuple[PointResult, ...]
    strata: tuple[np.ndarray, ...]
    area: float

    @property
    def rank(self) -> tuple[float, float]:
        """The sort key: the final score, and for equal scores the area."""
        score = float(statistics.interquartile_mean(*self.strata))
        return round(score, 6), -math.inf if math.isnan(self.area) else self.area


def edges(updates: int, parts: int) -> np.ndarray:
    """[B + 1] boundaries of the bins of a run; one update per bin if there are fewer updates."""
    return np.linspace(0, updates, min(parts, updates) + 1).round().astype(int)


def binned(
    metrics: dict[str, np.ndarray], parts: int, counts: Collection[str] = COUNTS
) -> dict[str, np.ndarray]:
    """Average metrics [S, U] over equal bins of the run: [S, B].

    Returns and lengths are averaged over the episodes of a bin, and metrics in `counts` are summed;
    a bin without values is NaN.
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
    """[S, B] with gaps filled by the previous value, or by the first one at the start."""
    known = np.isfinite(curve)
    last = np.maximum.accumulate(np.where(known, np.arange(curve.shape[1]), -1), axis=1)
    source = np.where(last >= 0, last, known.argmax(axis=1)[:, None])
    return np.take_along_axis(curve, source, axis=1)


def diverged(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """[S] whether a metric that must be finite is not, in any update."""
    wrong = [
        ~np.isfinite(x).all(axis=1) for n, x in metrics.items() if not n.startswith(MAY_BE_NAN)
    ]
    return np.any(wrong, axis=0)


def last_returns(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """[S] mean return of the episodes in the last tenth of training; NaN if none finished."""
    start = math.floor(metrics["episodes"].shape[1] * (1 - LAST))
    tail = {n: metrics[n][:, start:] for n in ("episodes", "episode_return")}
    return binned(tail, 1)["episode_return"][:, 0]


def scores(metrics: dict[str, np.ndarray], returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[S] mean and standard deviation of the returns of greedy episodes [S, E].

    For E = 0, these are the mean return at the end of training, and NaN.
    """
    if returns.shape[1]:
        return returns.mean(axis=1), returns.std(axis=1)
    last = last_returns(metrics)
    return last, np.full_like(last, np.nan)


def penalise(results: Sequence[PointResult], seen: Sequence[PointResult] = ()) -> list[PointResult]:
    """Give diverged agents the worst return that occurred in their environment.

    They are included, because omitting failures would bias the results. Using the worst score of
    the other agents would also bias them if all of these are good; returns during training, which
    begin with an untrained policy, are therefore considered as well.

    Args:
        results: results to be penalised.
        seen: further results in which to look for the worst return.
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
    """Group the results by their values without the environment, best first."""
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


def short_names(points: Sequence[Overrides]) -> list[str]:
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


def _without_env(point: Overrides) -> Overrides:
    return {n: v for n, v in point.items() if n != "env"}


def _range(results: Sequence[PointResult]) -> tuple[float, float]:
    """(lowest score, difference between the highest and the lowest score)"""
    scores = np.concatenate([r.score for r in results])
    return float(scores.min()), float(np.ptp(scores)) or 1.0


def table(results: Sequence[PointResult], threshold: float | None = None) -> list[dict[str, Any]]:
    """The result table, one row per configuration.

    Args:
        results: results in any order.
        threshold: return to be reached; None for the default of each environment.
    """
    return [{"configuration": i, **r.point, **row(r, threshold)} for i, r in enumerate(results)]


def row(result: PointResult, threshold: float | None = None) -> dict[str, Any]:
    """Mean, IQM with interval, median, area, steps to the threshold and fraction reaching it."""
    score = result.score
    low, high = statistics.interval([score])
    target = result.threshold(threshold)
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
        "threshold": target,
        "steps_to_threshold": None,
        "share_reached": None,
    }
    if target is not None:
        steps = result.steps_to(target)
        middle = float(np.median(steps))
        out["share_reached"] = round(float(np.isfinite(steps).mean()), 4)
        out["steps_to_threshold"] = int(middle) if math.isfinite(middle) else None
    return out


def _round(x: Any) -> float | None:
    """A number with five significant digits; None if it is not finite."""
    return float(f"{float(x):.5g}") if math.isfinite(x) else None
