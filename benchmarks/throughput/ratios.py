"""Ratios of two contestants, round by round, and what may be said of them.

Contestants take rounds in turns, so that a slow minute of the machine meets both: the ratio is
taken of neighbouring rounds. Its median has a bootstrap interval. One contestant is called faster
only where the interval leaves out 1 and the medians of the rates themselves say the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL, RESAMPLES = 0.95, 10_000
# Of fewer rounds no resampling finds an interval of LEVEL: all of n pairs are above the median of
# all possible ones with probability 2^-n, and that n of them say so must be rarer than 1 - LEVEL.
FEWEST = 5
# What `interval` is, for the column of this name.
INTERVAL = f"bootstrap {LEVEL:.0%}"
TOO_FEW = "too few rounds"


class Ratio(NamedTuple):
    """The median of ratios and its interval; without an interval low and high are None."""

    middle: float
    low: float | None = None
    high: float | None = None


def paired(mine: Sequence[float], other: Sequence[float]) -> Ratio:
    """How many times the rates of `mine` are those of `other`, round by round.

    Args:
        mine: [N] rates, in the order of the rounds.
        other: [N] rates of the same rounds.

    Returns:
        The median of the N ratios, and the percentile interval of medians of N drawn anew. With
        fewer than FEWEST rounds it has no interval.

    Raises:
        ValueError: they have different numbers of rounds.
    """
    if len(mine) != len(other):
        raise ValueError(f"{len(mine)} rounds against {len(other)}: they are no pairs")
    pairs = np.asarray(mine, float) / np.asarray(other, float)
    middle = float(np.median(pairs))
    if len(pairs) < FEWEST:
        return Ratio(middle)
    # The same rounds give the same interval.
    drawn = np.random.default_rng(0).choice(pairs, (RESAMPLES, len(pairs)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.median(drawn, axis=1), (tail, 1 - tail))
    return Ratio(middle, float(low), float(high))


def verdict(ratio: Ratio, mine: float, other: float) -> str:
    """What a ratio lets us say: "faster", "slower", "tie", or that there are too few rounds.

    Args:
        ratio: of `paired`.
        mine: median of the rates themselves.
        other: the other's.
    """
    if ratio.low is None or ratio.high is None:
        return TOO_FEW
    if ratio.low > 1 and mine > other:
        return "faster"
    if ratio.high < 1 and mine < other:
        return "slower"
    return "tie"


def shown(ratio: Ratio, mine: float, other: float) -> str:
    """As it stands in a table: "1.62x [1.55, 1.71]", "tie [0.94, 1.24]", or "too few rounds".

    Args:
        ratio, mine, other: as for `verdict`.
    """
    found = verdict(ratio, mine, other)
    if found == TOO_FEW:
        return found
    first = "tie" if found == "tie" else f"{_digits(ratio.middle)}x"
    return f"{first} [{_digits(ratio.low)}, {_digits(ratio.high)}]"


def _digits(x: float | None) -> str:
    """Two decimals, fewer of large numbers."""
    assert x is not None, "a verdict has an interval"
    return f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 100 else f"{x:,.0f}"
