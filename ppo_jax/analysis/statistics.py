"""Statistics of small numbers of runs, as Agarwal et al. (2021) recommend them.

"Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021. A result is a
list of strata, one array of scores per task; the bootstrap resamples the seeds within each task.
The computations are those of scipy; this module combines them.
"""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000
Strata = Sequence[np.ndarray]
Statistic = Callable[..., np.ndarray]


def interquartile_mean(*strata: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of the middle half of all scores, pooled over the strata.

    Args:
        strata: scores of each task, [S_k, ...].
        axis: the axis of the seeds.

    Returns:
        The interquartile mean, [...]. At either end, a quarter of the scores, rounded down, is left
        out.
    """
    from scipy import stats  # a second, which commands that only print help need not wait

    return stats.trim_mean(np.concatenate(strata, axis), 0.25, axis=axis)


def mean(*strata: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of all scores, pooled over the strata."""
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
        strata: scores of each task, [S_k, ...]; seeds are resampled with replacement within a task.
        statistic: function (*strata, axis) -> [...].
        resamples: number of bootstrap resamples.
        confidence: confidence level of the interval.
        seed: seed of the resampling.

    Returns:
        Lower and upper end of the interval, [...] each; NaN if a task has a single seed, for which
        there is no interval.
    """
    if min(len(x) for x in strata) < 2:
        nothing = np.full(np.shape(strata[0])[1:], np.nan)
        return nothing, nothing
    from scipy import stats

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
    """The fraction of runs that score above each threshold, as a mean over tasks (section 4.3).

    Args:
        strata: scores of each task, [S_k].
        thresholds: thresholds of the score, [H].

    Returns:
        The fraction of runs above each threshold, [H].
    """
    return np.mean([above(x, thresholds).mean(0) for x in strata], axis=0)


def above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Whether each run scores above each threshold, as 0 or 1, [S, H]."""
    return (scores[:, None] > thresholds).astype(float)


def probability_of_improvement(*strata: np.ndarray, axis: int = 0) -> np.ndarray:
    """P(X > Y) + P(X = Y) / 2 for a run of X and a run of Y, as a mean over tasks (section 4.4).

    This is the Mann-Whitney U statistic divided by the number of pairs, computed from ranks.

    Args:
        strata: scores of X on each task, followed by the scores of Y, [S_k, ...] each.
        axis: the axis of the seeds.

    Returns:
        The probability that X scores higher, [...].
    """
    from scipy import stats

    middle = len(strata) // 2
    shares = []
    for x, y in zip(strata[:middle], strata[middle:], strict=True):
        n, m = x.shape[axis], y.shape[axis]
        ranks = stats.rankdata(np.concatenate([x, y], axis), axis=axis)
        of_x = np.take(ranks, np.arange(n), axis).sum(axis)
        shares.append((of_x - n * (n + 1) / 2) / (n * m))
    return np.mean(shares, axis=0)


def difference(*strata: np.ndarray, axis: int = 0) -> np.ndarray:
    """The interquartile mean of X minus the interquartile mean of Y.

    Args:
        strata: scores of X on each task, followed by the scores of Y, [S_k, ...] each.
        axis: the axis of the seeds.
    """
    middle = len(strata) // 2
    return interquartile_mean(*strata[:middle], axis=axis) - interquartile_mean(
        *strata[middle:], axis=axis
    )
