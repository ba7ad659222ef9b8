"""Padded tokens with and without length buckets, on the paragraphs of Python's documentation.

python -m benchmarks.language.buckets

The texts are those of `pydoc_data.topics`, which is part of every CPython; a token is a byte. The
number of tokens in a batch determines the time of a step. Results: language_buckets.csv.
"""

import re

import numpy as np

from benchmarks.table import RESULTS, Row, replace
from ppo_jax.rlhf import buckets, supervised

LENGTH = 512  # maximum number of tokens of a text, the default of --max-length
BATCH = 64  # the default of --batch-size


def texts() -> list[str]:
    """The paragraphs of the documentation."""
    from pydoc_data.topics import topics

    found = re.split(r"\n\s*\n", "\n\n".join(topics.values()))
    return [text for text in found if text.strip()]


def measure() -> list[Row]:
    """Rows of the table, one for each number of buckets."""
    lengths = np.array([min(len(text.encode()), LENGTH) for text in texts()])
    mask = np.arange(LENGTH) < lengths[:, None]
    rows = supervised.text_rows(mask.astype(np.int32), mask, mask)
    found = []
    for count in (1, 2, 4, 8):
        result = buckets.padding(rows, count, BATCH)
        found.append(
            {
                "buckets": count,
                "rows": sum(result.counts),
                "text_tokens": result.text,
                "padded_tokens": result.padded,
                "fewer_tokens": f"{result.longest / result.padded:.2f}",
                "widths": " ".join(map(str, result.widths)),
            }
        )
    return found


def main() -> None:
    """Measure, write the CSV file and print the table."""
    path = RESULTS / "language_buckets.csv"
    for row in replace(path, measure(), ("buckets",), lambda row: int(row["buckets"])):
        print(*row.values(), sep=" | ")


if __name__ == "__main__":
    main()
