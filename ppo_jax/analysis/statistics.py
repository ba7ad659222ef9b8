"""Statistics of a handful of runs, as Agarwal et al. (2021) recommend them.

"Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021. A result is a
list of strata, one array of scores per task; the seeds of a task are drawn again within it. The
work is scipy's; what is ours is how the pieces are put together.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2000
Strata = Sequence[np.ndarray]
Statistic = Callable[..., np.ndarray]


def interquartile_mean(*strata: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of the middle half of all scores together.

    Args:
        strata: scores, [S_k, ...] each.
        axis: of the seeds.

    Returns:
        [...]; a quarter of the scores, rounded down, is left out at either end.
    """
    return stats.trim_mean(np.concatenate(strata, axis), 0.25, axis=axis)


def mean(*strata: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of all scores together."""
    return np.concatenate(strata, axis).mean(axis)


def interval(
    strata: Strata,
    statistic: Statistic = interquartile_mean,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The stratified percentile bootstrap interval of a statistic.

    Args:
        strata: scores, [S_k, ...] each; seeds are drawn with replacement within each.
        statistic: (*strata, axis) -> [...]
        resamples: how often.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        (low, high), [...] each; NaN where a stratum has a single seed, for which there is none.
    """
    if min(len(x) for x in strata) < 2:
        nothing = np.full(np.shape(strata[0])[1:], np.nan)
        return nothing, nothing
    largest = sum(np.size(x) for x in strata)
    found = stats.bootstrap(
        tuple(strata),
        statistic,
        vectorized=True,
        axis=0,
        method="percentile",
        n_resamples=resamples,
        confidence_level=confidence,
        batch=max(1, 20_000_000 // largest),  # keeps the resampled scores below 160 MB
        rng=np.random.default_rng(seed),
    )
    return found.confidence_interval.low, found.confidence_interval.high


def performance_profile(strata: Strata, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs that score above each threshold, mean over tasks (section 4.3 there).

    Args:
        strata: scores, [S_k] each.
        thresholds: [H]

    Returns:
        [H]
    """
    return np.mean([above(x, thresholds).mean(0) for x in strata], axis=0)


def above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[S, H] whether a run scores above a threshold, as numbers."""
    return (scores[:, None] > thresholds).astype(float)


def probability_of_improvement(*strata: np.ndarray, axis: int = 0) -> np.ndarray:
    """P(X > Y) + P(X = Y) / 2 of a run of X and one of Y, mean over tasks (section 4.4 there).

    The Mann-Whitney statistic over the number of pairs, from ranks.

    Args:
        strata: those of X and then those of Y, [S_k, ...] each.
        axis: of the seeds.

    Returns:
        [...]
    """
    middle = len(strata) // 2
    shares = []
    for x, y in zip(strata[:middle], strata[middle:], strict=True):
        n, m = x.shape[axis], y.shape[axis]
        ranks = stats.rankdata(np.concatenate([x, y], axis), axis=axis)
        of_x = np.take(ranks, np.arange(n), axis).sum(axis)
        shares.append((of_x - n * (n + 1) / 2) / (n * m))
    return np.mean(shares, axis=0)


def difference(*strata: np.ndarray, axis: int = 0) -> np.ndarray:
    """The interquartile mean of X less that of Y.

    Args:
        strata: those of X and then those of Y, [S_k, ...] each.
        axis: of the seeds.
    """
    middle = len(strata) // 2
    return interquartile_mean(*strata[:middle], axis=axis) - interquartile_mean(
        *strata[middle:], axis=axis
    )
