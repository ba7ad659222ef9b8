"""Length buckets: rows of similar length in one array, so that short texts carry little padding.

The widths of the buckets are those with the fewest padded tokens in all. A gradient step uses rows
of one bucket.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.types import Batch

# One Batch, or one for each bucket.
Rows: TypeAlias = Batch | tuple[Batch, ...]
# Widths are multiples of this number of tokens.
STEP = 8
# A further bucket is compiled as a program of its own; it must save this share of all tokens.
WORTHWHILE = 0.05


class Padding(NamedTuple):
    """The effect of buckets on the number of tokens in arrays.

    Attributes:
        widths: number of tokens of a row in each bucket.
        counts: number of rows in each bucket.
        text: number of tokens of the texts themselves.
        padded: number of tokens of all rows in their buckets.
        longest: number of tokens if every row is as long as the longest.
    """

    widths: tuple[int, ...]
    counts: tuple[int, ...]
    text: int
    padded: int
    longest: int

    def __str__(self) -> str:
        many = f"{len(self.widths)} length buckets" if len(self.widths) > 1 else "one length bucket"
        saved = 1.0 - self.padded / self.longest
        return (
            f"{sum(self.counts):,} rows in {many} ({', '.join(map(str, self.widths))} tokens): "
            f"{1.0 - self.text / self.padded:.0%} of the tokens are padding; "
            f"{saved:.0%} fewer tokens than with all rows as long as the longest"
        )


def lengths(rows: Batch) -> np.ndarray:
    """[N] the number of tokens of each row; of the longer text of a pair.

    Args:
        rows: rows of `supervised.text_rows` or `supervised.preference_rows`.
    """
    masks = [x for name, x in rows.obs.items() if name.endswith("mask")]
    return np.max([np.sum(np.asarray(mask) > 0, axis=1) for mask in masks], axis=0)


def bucketed(rows: Batch, buckets: int, least: int) -> Rows:
    """Rows as arrays on the device, in buckets of similar length.

    Args:
        rows: rows [N, L] of `supervised.text_rows` or `supervised.preference_rows`.
        buckets: maximum number of buckets.
        least: minimum number of rows in a bucket, the batch size.

    Returns:
        The Batch itself if one bucket is enough, otherwise a tuple of Batches [N_k, L_k].
    """
    length = lengths(rows)
    limits = widths(length, buckets, least)
    if len(limits) == 1:
        return jax.tree.map(jnp.asarray, rows)
    bucket = np.searchsorted(limits, length)
    found = []
    for k in range(len(limits)):
        index = np.flatnonzero(bucket == k)
        part = shortened(jax.tree.map(lambda x, index=index: np.asarray(x)[index], rows))
        found.append(jax.tree.map(jnp.asarray, part))
    return tuple(found)


def padding(rows: Batch, buckets: int, least: int) -> Padding:
    """The number of padded tokens of rows in buckets; see `bucketed` for the arguments."""
    length = lengths(rows)
    limits = widths(length, buckets, least)
    counts = np.bincount(np.searchsorted(limits, length), minlength=len(limits))
    used = [min(width, int(length.max())) for width in limits]
    return Padding(
        tuple(used),
        tuple(map(int, counts)),
        int(length.sum()),
        int(np.dot(used, counts)),
        int(length.max()) * len(length),
    )


def parts_of(rows: Rows) -> tuple[Batch, ...]:
    """The buckets of rows; a Batch is a single bucket."""
    return rows if isinstance(rows, tuple) else (rows,)


def shortened(rows: Batch) -> Batch:
    """Rows without the columns that are padding in all of them, except to fill up to STEP."""
    width = STEP * math.ceil(max(int(lengths(rows).max()), 2) / STEP)

    def cut(x: Any) -> Any:
        return x[:, :width] if x.ndim == 2 else x

    weight = rows.weight[:, : width - 1] if rows.weight.ndim == 2 else rows.weight
    return Batch(jax.tree.map(cut, rows.obs), (), (), (), (), (), weight)  # type: ignore[arg-type]


def widths(length: np.ndarray, buckets: int, least: int) -> list[int]:
    """The widths of the buckets with the fewest padded tokens.

    Σ_k N_k w_k is minimal over w_1 < … < w_K, with at least `least` rows in each bucket. K is the
    smallest number for which another bucket saves less than 5 % of the tokens.

    Args:
        length: [N] number of tokens of each row.
        buckets: maximum number of buckets.
        least: minimum number of rows in a bucket.

    Returns:
        The widths in ascending order, multiples of STEP; no row is longer than the last.
    """
    rounded = STEP * np.ceil(np.asarray(length) / STEP).astype(int)
    sizes, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    best, chosen = _partition(sizes, before, 1, least)
    for k in range(2, buckets + 1):
        cost, found = _partition(sizes, before, k, least)
        if cost > (1.0 - WORTHWHILE) * best:
            break
        best, chosen = cost, found
    return chosen


def _partition(
    sizes: np.ndarray, before: np.ndarray, buckets: int, least: int
) -> tuple[float, list[int]]:
    """(padded tokens, widths) of the best partition into exactly that number of buckets.

    Dynamic programming over the number of buckets; infinity if there are too few rows.
    """
    count = len(sizes)
    cost = np.full((buckets + 1, count + 1), np.inf)
    last = np.zeros((buckets + 1, count + 1), int)
    cost[0, 0] = 0.0
    for k in range(1, buckets + 1):
        for end in range(1, count + 1):
            rows = before[end] - before[:end]
            enough = rows >= (least if buckets > 1 else 1)
            total = np.where(enough, cost[k - 1, :end] + rows * sizes[end - 1], np.inf)
            last[k, end] = int(np.argmin(total))
            cost[k, end] = total[last[k, end]]
    found, end = [], count
    for k in range(buckets, 0, -1):
        found.append(int(sizes[end - 1]))
        end = int(last[k, end])
    return float(cost[buckets, count]), found[::-1]
