"""Peak memory of runs of different lengths, which should be the same.

python -m benchmarks.memory            1 M and 10 M steps of CartPole, each in a separate process

The table is written to benchmarks/results/memory.csv.
"""

import csv
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the peak memory of runs.

    Attributes:
        steps: numbers of environment steps, with one run for each.
        env: name of the environment.
    """

    steps: tuple[int, ...] = (1_000_000, 10_000_000)
    env: str = "CartPole-v1"


def peak_megabytes(env: str, steps: int) -> float:
    """Peak resident memory in MB of the whole process of `python -m ppo_jax.train`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "ppo_jax.train",
            "--env",
            env,
            "--run-dir",
            f"{folder}/run",
        ]
        process = subprocess.Popen(
            [*command, "--total-timesteps", str(steps)], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the run of {steps} steps failed")
        return usage.ru_maxrss / 1024


def main(options: Options) -> None:
    """Measure all runs, print and write the table."""
    rows = [
        {"env": options.env, "steps": n, "peak_mb": round(peak_megabytes(options.env, n), 1)}
        for n in options.steps
    ]
    table = Table("env", "steps", "peak MB")
    for row in rows:
        table.add_row(row["env"], f"{row['steps']:,}", str(row["peak_mb"]))
    Console().print(table)
    with (RESULTS / "memory.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Options))
