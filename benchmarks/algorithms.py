"""Environment steps per second of every algorithm, in one run on one machine.

python -m benchmarks.algorithms
python -m benchmarks.algorithms --table      print the committed results

Rounds are interleaved, A B C A B C, so that a change in the machine's speed affects all algorithms;
the fastest round of each is reported. `ratio` is the time per environment step relative to PPO. The
last rows train many seeds at once, vmapped on one core or on all cores; their `ratio` is the time
of the whole run relative to a run with one seed. The table is written to
benchmarks/results/algorithms.csv.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh, PartitionSpec
from rich.console import Console
from rich.table import Table

from benchmarks.table import RESULTS, merge, read
from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.runs import provenance
from ppo_jax.train import build

# All algorithms use the same rollout, except for REINFORCE, which needs whole episodes.
NUM_ENVS, NUM_STEPS, LONGEST_EPISODE = 8, 128, 500


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the speed of the algorithms.

    Attributes:
        algorithms: names of the algorithms to measure; all by default.
        env: name of the environment.
        seconds: approximate duration of a round in seconds.
        rounds: number of rounds.
        seeds: number of seeds in a run with many seeds.
        many: names of the algorithms that are also measured with many seeds.
        table: only print the committed results, as in the documentation.
    """

    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    env: str = "CartPole-v1"
    seconds: float = 2.0
    rounds: int = 5
    seeds: int = 16
    many: tuple[str, ...] = ("trpo", "ppo")
    table: bool = False


class Contestant:
    """A compiled training program with its state."""

    def __init__(self, algorithm: str, env: str, how: str = "single", seeds: int = 1) -> None:
        whole = "time_limit" in configs.fields(algorithm)
        self.name, self.how, self.seeds = algorithm, how, seeds
        self.config = configs.make(
            preset="none",
            env=env,
            algorithm=algorithm,
            num_envs=NUM_ENVS,
            num_steps=LONGEST_EPISODE if whole else NUM_STEPS,
            total_timesteps=10**9,
        )
        program = build(self.config)
        keys = jax.random.key(0) if how == "single" else jax.random.split(jax.random.key(0), seeds)
        init = program.init if how == "single" else jax.vmap(program.init)
        self.state = jax.jit(init)(keys)

        def run(state: Any, updates: jax.Array) -> Any:
            return jax.lax.fori_loop(0, updates, lambda _, s: program.step(s)[0], state)

        started = time.perf_counter()
        self.run = jax.jit(_spread(run, how)).lower(self.state, np.int32(1)).compile()
        self.compile_seconds = time.perf_counter() - started
        self.updates, self.seconds_per_update = 1, [self.time(1)]

    def time(self, updates: int) -> float:
        """Train for a number of updates; returns seconds per update."""
        started = time.perf_counter()
        self.state = jax.block_until_ready(self.run(self.state, np.int32(updates)))
        return (time.perf_counter() - started) / updates

    def round(self, seconds: float) -> None:
        """Run one round of approximately the given number of seconds."""
        updates = max(1, int(seconds / min(self.seconds_per_update)))
        self.seconds_per_update.append(self.time(updates))

    def row(self) -> dict[str, Any]:
        """A row of the table; the first measurement is left out as a warm-up."""
        measured = np.array(self.seconds_per_update[1:])
        steps = self.config.num_envs * self.config.num_steps * self.seeds
        return {
            "algorithm": self.name,
            "how": self.how,
            "seeds": self.seeds,
            "env": self.config.env,
            "num_envs": self.config.num_envs,
            "num_steps": self.config.num_steps,
            "compile_seconds": round(self.compile_seconds, 2),
            "steps_per_second": round(steps / measured.min()),
            "median_steps_per_second": round(steps / float(np.median(measured))),
            "microseconds_per_step": round(1e6 * measured.min() / steps, 3),
            "ratio": 1.0,
            "device": provenance.device(),
            "cores": os.cpu_count(),
            "jax": jax.__version__,
        }


def _spread(run: Callable[..., Any], how: str) -> Callable[..., Any]:
    """The program of one run, of many vmapped runs, or of many vmapped runs on each core."""
    if how == "single":
        return run
    many = jax.vmap(run, in_axes=(0, None))
    if how == "vmap":
        return many
    seeds, everywhere = PartitionSpec("seed"), PartitionSpec()
    return jax.shard_map(
        many,
        mesh=Mesh(np.array(jax.devices()), ("seed",)),
        in_specs=(seeds, everywhere),
        out_specs=seeds,
        check_vma=False,
    )


def markdown() -> str:
    """The table of the documentation."""
    head = ("algorithm", "seeds", "steps/s", "µs per step", "cost", "compile s")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in read(RESULTS / "algorithms.csv"):
        many = r["how"] != "single"
        seeds = f"{r['seeds']}, {r['how']}" if many else "1"
        cost = f"{r['ratio']} single runs" if many else f"{r['ratio']} of PPO's"
        steps = f"{int(r['steps_per_second']):,}"
        cells = (f"`{r['algorithm']}`", seeds, steps, r["microseconds_per_step"], cost)
        lines.append("| " + " | ".join((*cells, r["compile_seconds"])) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Compile all programs, measure them in interleaved rounds, write and print the table."""
    if options.table:
        print(markdown(), end="")
        return
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    field = [Contestant(name, options.env) for name in options.algorithms]
    for name in options.many:
        for how in ("vmap", "sharded"):
            field.append(Contestant(name, options.env, how, options.seeds))
    for _ in range(options.rounds):
        for contestant in field:
            contestant.round(options.seconds)
    rows = [contestant.row() for contestant in field]
    single = {r["algorithm"]: r["microseconds_per_step"] for r in rows if r["how"] == "single"}
    for row in rows:
        reference = single.get("ppo") if row["how"] == "single" else single.get(row["algorithm"])
        if reference is None:
            continue
        share = row["microseconds_per_step"] / reference
        # One seed: time per step relative to PPO. S seeds: time relative to a run of one seed.
        row["ratio"] = round(share if row["how"] == "single" else share * row["seeds"], 2)
    order = {"how": ["single", "vmap", "sharded"], "algorithm": [*ALGORITHMS]}
    merge(RESULTS / "algorithms.csv", rows, order)
    table = Table("algorithm", "how", "seeds", "compile s", "steps/s", "µs/step", "ratio")
    for r in rows:
        cells = ("algorithm", "how", "seeds", "compile_seconds", "steps_per_second")
        table.add_row(*(str(r[c]) for c in (*cells, "microseconds_per_step", "ratio")))
    Console(width=110).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
