"""Speed of training a language model with ppo_jax and TRL, in one run on a CPU.

python -m benchmarks.rlhf                               all sizes, then the breakdown of ppo_jax
python -m benchmarks.rlhf --sizes small --rounds 7
python -m benchmarks.rlhf --parts breakdown             ppo_jax alone
python -m benchmarks.rlhf --table                       print the committed results

The sizes small and gpt2 are updates of PPO (PPOTrainer), those with -sft and -reward gradient steps
of supervised training (SFTTrainer, RewardTrainer); their episodes are texts and pairs of texts.
Actor, critic, reference and reward are four models of the same shape with random weights; no model
is downloaded. TRL is installed by pip into a virtual environment of its own in the first run, and
uses its fastest settings, which are listed in benchmarks/language/trl.py. Each contestant is a
process, and the contestants run rounds in turns, A B A B. Compilation and the first update are
reported separately. Each round records wall-clock time and the CPU seconds of the process, which
other processes affect less. All generated tokens are counted, also those after an end of text,
because both contestants generate the same number for every response.
"""

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.language.sizes import SIZES
from benchmarks.names import check_names
from benchmarks.table import RESULTS, Row, read, replace
from benchmarks.throughput import peers
from benchmarks.throughput.race import Contestant, Settings, race
from benchmarks.throughput.results import processor

NAMES = {"ours": "ppo_jax", "trl": "TRL"}
PARTS = ("race", "breakdown")
REQUIREMENTS = (
    "trl==1.12.0", "transformers==5.24.0", "accelerate==1.15.0", "torch==2.13.0",
    "requests",  # its GRPOTrainer imports it
)  # fmt: skip
FIELDS = (
    "size", "implementation", "episodes_per_second", "tokens_per_second", "slowest", "fastest",
    "cpu_seconds_per_update", "rounds", "speedup", "speedup_low", "speedup_high", "cpu_speedup",
    "compile_seconds", "first_update_seconds", "peak_mb", "load", "why", "versions", "python",
    "cores", "processor",
)  # fmt: skip
KEY = ("size",)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the speed of PPO on language models.

    Attributes:
        sizes: sizes to measure: small, gpt2, and each of them with -sft or -reward.
        contestants: contestants to measure: ours, trl.
        parts: parts to run: race compares the contestants, breakdown measures the parts of an
            update of ppo_jax.
        peer: virtual environment of TRL; by default one in the user's cache, made if missing.
        rounds: number of rounds of each contestant.
        seconds: approximate duration of a round in seconds, with at least one update.
        patience: seconds after which a contestant that does not answer is stopped.
        out: folder of the tables.
        table: only print the committed results, as in the documentation.
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
    """Refuse invalid options before anything is installed.

    Raises:
        SystemExit: an option is invalid; the message names its value and the allowed ones.
    """
    for option, names in (("sizes", SIZES), ("contestants", NAMES), ("parts", PARTS)):
        check_names(option, getattr(options, option), names)
    for option in ("rounds", "seconds", "patience"):
        if getattr(options, option) <= 0:
            raise SystemExit(f"--{option} is {getattr(options, option)}; it must be > 0")


def main(options: Options) -> None:
    """Run the chosen parts, write their rows and print the tables."""
    check(options)
    if not options.table:
        for part in options.parts:
            for name in options.sizes:
                if part == "race" or SIZES[name].task == "ppo":
                    measure(part, name, options)
    out = RESULTS if options.table else options.out
    print("\n".join([markdown(out), breakdown_markdown(out)]), end="")


def measure(part: str, name: str, options: Options) -> None:
    """Run one part on one size, and write its rows."""
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
    """Path of the Python interpreter in TRL's virtual environment."""
    return peers.environment(f"trl-{platform.python_version()}", [*REQUIREMENTS], folder)


def place(row: Row) -> int:
    """Sort key of a row: the index of its size; rows of one size keep their order."""
    return list(SIZES).index(row["size"])


def rows_of(field: list[Contestant]) -> list[Row]:
    """A row for each contestant; `speedup` is the median over rounds of our rate by its rate."""
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
        "tokens_per_second": round(float(np.median(rate)) * size.tokens_per_episode, 1),
        "slowest": round(float(rate.min()), 3),
        "fastest": round(float(rate.max()), 3),
        "cpu_seconds_per_update": round(float(np.median(busy)), 3),
        "rounds": len(rate),
        **{n: c.ready[n] for n in ("compile_seconds", "first_update_seconds")},
        "peak_mb": round(max(r["peak_bytes"] for r in c.rounds) / 2**20),
        "versions": " ".join(f"{k}={v}" for k, v in c.ready["versions"].items()),
    }


def _rates(c: Contestant) -> tuple[np.ndarray, np.ndarray]:
    """Episodes per second and CPU seconds per update, for every round."""
    rate = [r["env_steps"] / r["seconds"] for r in c.rounds]
    return np.array(rate), np.array([r["cpu_seconds"] / r["updates"] for r in c.rounds])


def markdown(folder: Path = RESULTS) -> str:
    """The table of rates, with the speed-up of ppo_jax."""
    lines = [
        "| | | episodes/s | tokens/s | CPU s per update | speed-up | speed-up, CPU time "
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
    """A table of the parts of an update for each size."""
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
