"""PPO on a language model: ppo_jax and TRL's PPOTrainer, the same shapes, in one run on CPU.

python -m benchmarks.rlhf                               both sizes, then the breakdown of ours
python -m benchmarks.rlhf --sizes small --rounds 7
python -m benchmarks.rlhf --parts breakdown             ppo_jax alone
python -m benchmarks.rlhf --table                       print the committed results

Actor, critic, reference and reward are four models of one shape with random weights; nothing is
downloaded. TRL is installed by pip into an environment of its own at the first run, and gets the
fastest settings it has (benchmarks/language/trl.py says which). Each contestant is a process;
they take rounds in turns, A B A B, while the other waits. The first update, and compiling, are
told apart. Of every round both the time and the CPU seconds of the process are kept: the latter
do not depend on what else the machine does. Places of responses are counted as tokens, because
both contestants fill them all, also behind an end of text.
"""

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.language.sizes import SIZES
from benchmarks.table import RESULTS, Row, read, replace
from benchmarks.throughput import peers
from benchmarks.throughput.race import Contestant, Settings, race
from benchmarks.throughput.results import processor
from ppo_jax.config.options import did_you_mean

NAMES = {"ours": "ppo_jax", "trl": "TRL"}
PARTS = ("race", "breakdown")
REQUIREMENTS = ("trl==1.12.0", "transformers==5.24.0", "accelerate==1.15.0", "torch==2.13.0")
FIELDS = (
    "size", "implementation", "episodes_per_second", "tokens_per_second", "slowest", "fastest",
    "cpu_seconds_per_update", "rounds", "speedup", "speedup_low", "speedup_high", "cpu_speedup",
    "compile_seconds", "first_update_seconds", "peak_mb", "load", "why", "versions", "python",
    "cores", "processor",
)  # fmt: skip
KEY = ("size",)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure PPO on language models.

    Attributes:
        sizes: small, gpt2.
        contestants: ours, trl.
        parts: race: both; breakdown: of one of our updates.
        peer: virtual environment of TRL; made in the user's cache if not given.
        rounds: how often each.
        seconds: of a round, about; one has at least one update.
        patience: seconds until one that does not answer is given up.
        out: folder of the tables.
        table: only print the committed results, as the documentation has them.
    """

    sizes: tuple[str, ...] = tuple(SIZES)
    contestants: tuple[str, ...] = tuple(NAMES)
    parts: tuple[str, ...] = PARTS
    peer: Path | None = None
    rounds: int = 5
    seconds: float = 5.0
    patience: float = 900.0
    out: Path = RESULTS
    table: bool = False


def check(options: Options) -> None:
    """Refuse unknown names before anything is installed.

    Raises:
        SystemExit: which, and what there is.
    """
    for option, names in (("sizes", SIZES), ("contestants", NAMES), ("parts", PARTS)):
        for name in getattr(options, option):
            if name not in names:
                raise SystemExit(f"--{option}: unknown {name!r}; {did_you_mean(name, names)}")
    for option in ("rounds", "seconds", "patience"):
        if getattr(options, option) <= 0:
            raise SystemExit(f"--{option} is {getattr(options, option)}; it must be > 0")


def main(options: Options) -> None:
    """Run the parts, keep what they find, print it."""
    check(options)
    if not options.table:
        for part in options.parts:
            for name in options.sizes:
                measure(part, name, options)
    out = RESULTS if options.table else options.out
    print("\n".join([markdown(out), breakdown_markdown(out)]), end="")


def measure(part: str, name: str, options: Options) -> None:
    """One part on one size; what it finds is kept at once."""
    if part == "breakdown":
        from benchmarks.language import breakdown

        found = breakdown.breakdown(SIZES[name], say=print)
        rows = [dict.fromkeys(breakdown.FIELDS, "") | row for row in found]
        replace(options.out / "rlhf_breakdown.csv", rows, ("size",), place)
        return
    settings = Settings(
        peers=python(options.peer) if {*options.contestants} - {"ours"} else "",
        rounds=options.rounds,
        seconds=options.seconds,
        patience=options.patience,
        worker="benchmarks.language.worker",
    )
    field = race(SIZES[name], options.contestants, settings, called=NAMES)
    replace(options.out / "rlhf.csv", rows_of(field), KEY, place)


def python(folder: Path | None) -> str:
    """TRL's Python."""
    return peers.environment(f"trl-{platform.python_version()}", [*REQUIREMENTS], folder)


def place(row: Row) -> int:
    """Sizes in the order they are listed; rows of one stay as they were made."""
    return list(SIZES).index(row["size"])


def rows_of(field: list[Contestant]) -> list[Row]:
    """A line for each contestant; `speedup` is ours over it, the median of the rounds in pairs."""
    ours = next((c for c in field if c.name == "ours"), None)
    return [_row(c, ours) for c in field]


def _row(c: Contestant, ours: Contestant | None) -> Row:
    size = c.configuration
    row: dict[str, Any] = dict.fromkeys(FIELDS, "") | {
        "size": size.name,
        "implementation": NAMES[c.name],
        "why": c.why,
        "load": round(os.getloadavg()[2], 1),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "processor": processor(),
    }
    if c.why:
        return row
    rate, busy = _rates(c)
    if ours is not None and not ours.why:
        our_rate, our_busy = _rates(ours)
        names = ("speedup_low", "speedup", "speedup_high")
        pairs = np.quantile(our_rate / rate, (0.25, 0.5, 0.75)).round(2)
        row |= dict(zip(names, pairs, strict=True))
        row["cpu_speedup"] = round(float(np.median(busy / our_busy)), 2)
    return row | {
        "episodes_per_second": round(float(np.median(rate)), 3),
        "tokens_per_second": round(float(np.median(rate)) * size.response_length, 1),
        "slowest": round(float(rate.min()), 3),
        "fastest": round(float(rate.max()), 3),
        "cpu_seconds_per_update": round(float(np.median(busy)), 3),
        "rounds": len(rate),
        **{n: c.ready[n] for n in ("compile_seconds", "first_update_seconds")},
        "peak_mb": round(max(r["peak_bytes"] for r in c.rounds) / 2**20),
        "versions": " ".join(f"{k}={v}" for k, v in c.ready["versions"].items()),
    }


def _rates(c: Contestant) -> tuple[np.ndarray, np.ndarray]:
    """Episodes per second, and CPU seconds of an update, of every round."""
    rate = [r["env_steps"] / r["seconds"] for r in c.rounds]
    return np.array(rate), np.array([r["cpu_seconds"] / r["updates"] for r in c.rounds])


def markdown(folder: Path = RESULTS) -> str:
    """Rates of both, and how many times faster ppo_jax is."""
    lines = [
        "| | | episodes/s | tokens/s | CPU s per update | ppo_jax is faster | by CPU time "
        "| compile s | peak MB |",
        "|" + "---|" * 9,
    ]
    for r in read(folder / "rlhf.csv"):
        if r["why"]:
            lines.append(f"| {r['size']} | {r['implementation']} | {r['why']} |" + " |" * 6)
            continue
        other = r["implementation"] != NAMES["ours"] and r["speedup"]
        faster = [f"{float(r[n]):.2f}x" if other else "" for n in ("speedup", "cpu_speedup")]
        own = r["compile_seconds"] if r["implementation"] == NAMES["ours"] else ""
        names = ("size", "implementation", "episodes_per_second", "tokens_per_second")
        cells = [r[n] for n in names] + [r["cpu_seconds_per_update"], *faster, own, r["peak_mb"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def breakdown_markdown(folder: Path = RESULTS) -> str:
    """A table for each size."""
    rows, tables = read(folder / "rlhf_breakdown.csv"), []
    percent = lambda x: f"{100 * float(x):.0f} %" if x else ""
    for name in dict.fromkeys(r["size"] for r in rows):
        lines = [
            f"| {name} | CPU ms | share | GFLOP | GFLOP per CPU s | of matmul |",
            "|" + "---|" * 6,
        ]
        for r in (r for r in rows if r["size"] == name):
            cells = [r["part"], r["cpu_milliseconds"], percent(r["share"]), r["gflop"]]
            cells += [r["gflops_per_second"], percent(r["of_matmul"])]
            lines.append("| " + " | ".join(cells) + " |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


if __name__ == "__main__":
    main(tyro.cli(Options))
