"""CPU time to draw one token from each of 64 distributions over a large vocabulary.

python -m benchmarks.sampling

Three methods are compared: the inverse of the cumulative distribution, which cannot reach many rare
tokens (`Categorical.sample`); the Gumbel trick with a random number for each token; and the two
stages of `ppo_jax.rlhf.sampling`. The methods alternate in every round, and the ratio of a method
is the median over rounds of the CPU time of the first method divided by its own. The table is
written to benchmarks/results/sampling.csv.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import commit
from benchmarks.table import RESULTS, merge
from ppo_jax.distributions import Categorical
from ppo_jax.rlhf import sampling
from ppo_jax.runs import provenance

FILE = RESULTS / "sampling.csv"
BATCH = 64
# The vocabularies of GPT-2 and Llama 3.
VOCABULARIES = (50257, 128256)


def gumbel(key: jax.Array, logits: jax.Array) -> jax.Array:
    """argmax_v z_v + g_v with the same resolution as `sampling.noise`."""
    return jnp.argmax(logits + jax.random.gumbel(key, logits.shape, mode="high"), axis=-1)


METHODS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "inverse cumulative": lambda key, logits: Categorical(logits).sample(key),
    "gumbel": gumbel,
    "two stages": sampling.sample,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the time to draw tokens.

    Attributes:
        rounds: number of rounds, in each of which every method is timed once.
        draws: number of draws that are timed together.
        out: file of the table.
    """

    rounds: int = 15
    draws: int = 4
    out: Path = FILE


def cpu_seconds(vocab_size: int, batch: int, *, rounds: int, draws: int) -> dict[str, list[float]]:
    """CPU seconds per draw of a batch for each method, one number for each round."""
    logits = 3.0 * jax.random.normal(jax.random.key(1), (batch, vocab_size))
    programs = {name: jax.jit(method) for name, method in METHODS.items()}
    for program in programs.values():
        program(jax.random.key(0), logits).block_until_ready()
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(rounds):
        keys = jax.random.split(jax.random.key(turn), draws)
        for name, program in programs.items():
            begin = time.process_time()
            for key in keys:
                program(key, logits).block_until_ready()
            found[name].append((time.process_time() - begin) / draws)
    return found


def rows_of(vocab_size: int, batch: int, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The rows of one vocabulary."""
    before = np.array(seconds["inverse cumulative"])
    return [
        {
            "vocab_size": str(vocab_size),
            "batch": batch,
            "method": name,
            "cpu_ms": round(1e3 * float(np.median(each)), 2),
            "ratio": round(float(np.median(before / np.array(each))), 2),
            "ratio_min": round(float(np.min(before / np.array(each))), 2),
            "ratio_max": round(float(np.max(before / np.array(each))), 2),
            "rounds": len(each),
            "device": provenance.device(),
            "jax": jax.__version__,
            "commit": commit.of(Path(__file__).parents[1]),
        }
        for name, each in seconds.items()
    ]


def main(options: Options) -> None:
    """Measure, write the table and print it."""
    order = {"vocab_size": [str(v) for v in VOCABULARIES], "method": [*METHODS]}
    for vocab_size in VOCABULARIES:
        seconds = cpu_seconds(vocab_size, BATCH, rounds=options.rounds, draws=options.draws)
        rows = rows_of(vocab_size, BATCH, seconds)
        merge(options.out, rows, order)
        for row in rows:
            print(row["vocab_size"], row["method"], row["cpu_ms"], "ms", f"{row['ratio']}x")


if __name__ == "__main__":
    main(tyro.cli(Options))
