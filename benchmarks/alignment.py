"""Objective of PPO on a language model, compared with the known optimum.

python -m benchmarks.alignment                                   words of Python, three seeds
python -m benchmarks.alignment --names PATH --updates 60 150     also names, with two run lengths

Each run is `python -m ppo_jax.rlhf` in a folder inside --runs; an interrupted run is resumed, and a
finished one is not repeated. The table is written to benchmarks/results/alignment.csv.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import tyro

from benchmarks.table import RESULTS, read, replace
from ppo_jax.runs import provenance

KEY = ("text", "updates", "seed")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the objective of PPO on a language model.

    Attributes:
        names: file with one name per line; without it only words of Python are used.
        updates: numbers of PPO updates, with one run for each.
        seeds: random seeds, with one run for each.
        runs: folder of the runs.
        table: only print the committed results.
    """

    names: Path | None = None
    updates: tuple[int, ...] = (60,)
    seeds: tuple[int, ...] = (0, 1, 2)
    runs: Path = Path("runs/alignment")
    table: bool = False


def run(text: str, data: Path | None, updates: int, seed: int, runs: Path) -> dict[str, Any]:
    """Run or resume one demo; returns the content of its summary.json."""
    folder = runs / f"{text}-{updates}-seed{seed}"
    if not (folder / "summary.json").exists():
        flags = ["--updates", str(updates), "--seed", str(seed)]
        flags += ["--data", str(data)] if data is not None else []
        if (folder / "config.json").exists():
            flags = ["--resume", str(folder)]
        else:
            flags += ["--run-dir", str(folder)]
        subprocess.run([sys.executable, "-m", "ppo_jax.rlhf", "demo", *flags], check=True)
    return json.loads((folder / "summary.json").read_text())


def row_of(text: str, updates: int, seed: int, found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    policy, reference, best = found["policy"], found["reference"], found["optimum"]
    return {
        "text": text,
        "updates": updates,
        "seed": seed,
        "share_of_optimum": round(found["share_of_optimum"], 3),
        "objective": round(policy["objective"], 3),
        "optimum": round(best["objective"], 3),
        "score": round(policy["score"], 3),
        "kl": round(policy["kl"], 3),
        "optimal_kl": round(best["kl"], 3),
        "gold_before": round(reference["gold"], 2),
        "gold_after": round(policy["gold"], 2),
        "eos_rate": round(policy["eos_rate"], 4),
        "reward_accuracy_noisy": round(found["reward_accuracy_noisy"], 3),
        "reward_accuracy_gold": round(found["reward_accuracy_gold"], 3),
        "log_prob_gap": f"{policy['log_prob_gap']:.1e}",
        "seconds": found["seconds"],
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def markdown() -> str:
    """The table of docs/rlhf.md."""
    lines = [
        "| text | updates | seed | J / J* | J | J* | gold rule | ends | reward model: noisy, gold "
        "| seconds |",
        "|" + "---|" * 10,
    ]
    for r in read(RESULTS / "alignment.csv"):
        gold = f"{r['gold_before']} → {r['gold_after']}"
        model = f"{float(r['reward_accuracy_noisy']):.0%}, {float(r['reward_accuracy_gold']):.0%}"
        cells = (r["text"], r["updates"], r["seed"], r["share_of_optimum"], r["objective"])
        cells += (r["optimum"], gold, f"{float(r['eos_rate']):.1%}", model)
        lines.append("| " + " | ".join((*cells, f"{float(r['seconds']):.0f}")) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Run the missing runs, merge their rows into the table and print it."""
    texts = {} if options.table else {"python": None}
    if options.names is not None:
        texts["names"] = options.names
    for text, data in texts.items():
        for updates in options.updates:
            for seed in options.seeds:
                found = run(text, data, updates, seed, options.runs)
                row = row_of(text, updates, seed, found)
                place = lambda r: (r["text"] == "names", int(r["updates"]), int(r["seed"]))
                replace(RESULTS / "alignment.csv", [row], KEY, place)
    print(markdown(), end="")


if __name__ == "__main__":
    main(tyro.cli(Options))
