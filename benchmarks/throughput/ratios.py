"""Ratios of the rates of two contestants, with confidence intervals.

Rounds are interleaved, so that a change in the machine's speed affects both contestants, and the
ratio is computed from neighbouring rounds. Its median has a bootstrap interval. A contestant is
called faster only if the interval does not contain 1 and the medians of the rates agree.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL, RESAMPLES = 0.95, 10_000
# With fewer rounds no interval of LEVEL exists: all n pairs exceed the true median with probability
# 2^-n, which must be less than 1 - LEVEL.
FEWEST = 5
# The kind of interval, for the column `interval`.
INTERVAL = f"bootstrap {LEVEL:.0%}"
TOO_FEW = "too few rounds"


class Ratio(NamedTuple):
    """The median of ratios and its confidence interval; low and high are None without one."""

    middle: float
    low: float | None = None
    high: float | None = None


def paired(mine: Sequence[float], other: Sequence[float]) -> Ratio:
    """The median of the ratios mine / other over rounds, with a bootstrap interval.

    Args:
        mine: [N] rates of the first contestant, in the order of the rounds.
        other: [N] rates of the second contestant in the same rounds.

    Returns:
        The median of the N ratios with its percentile bootstrap interval; there is no interval for
        fewer than FEWEST rounds.

    Raises:
        ValueError: the contestants have different numbers of rounds.
    """
    if len(mine) != len(other):
        raise ValueError(f"{len(mine)} and {len(other)} rounds cannot be compared in pairs")
    pairs = np.asarray(mine, float) / np.asarray(other, float)
    middle = float(np.median(pairs))
    if len(pairs) < FEWEST:
        return Ratio(middle)
    # A fixed seed, so that the same rounds give the same interval.
    drawn = np.random.default_rng(0).choice(pairs, (RESAMPLES, len(pairs)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.median(drawn, axis=1), (tail, 1 - tail))
    return Ratio(middle, float(low), float(high))


def verdict(ratio: Ratio, mine: float, other: float) -> str:
    """The conclusion from a ratio: "faster", "slower", "tie" or "too few rounds".

    Args:
        ratio: median ratio with its interval, from `paired`.
        mine: median rate of the first contestant.
        other: median rate of the second contestant.
    """
    if ratio.low is None or ratio.high is None:
        return TOO_FEW
    if ratio.low > 1 and mine > other:
        return "faster"
    if ratio.high < 1 and mine < other:
        return "slower"
    return "tie"


def shown(ratio: Ratio, mine: float, other: float) -> str:
    """The text of a ratio: "1.62x [1.55, 1.71]", "tie [0.94, 1.24]" or "too few rounds".

    Args:
        ratio, mine, other: the arguments of `verdict`.
    """
    found = verdict(ratio, mine, other)
    if found == TOO_FEW:
        return found
    first = "tie" if found == "tie" else f"{_digits(ratio.middle)}x"
    return f"{first} [{_digits(ratio.low)}, {_digits(ratio.high)}]"


def _digits(x: float | None) -> str:
    """A number with two decimals, or fewer if it is large."""
    assert x is not None, "a ratio with a verdict has an interval"
    return f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 100 else f"{x:,.0f}"
