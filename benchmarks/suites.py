"""Speed and compilation time of PPO on one environment of each suite.

python -m benchmarks.suites                     all installed suites, 20,000 steps each
python -m benchmarks.suites --suites brax pgx
python -m benchmarks.suites --table             print the committed results

The table in the documentation uses CPU seconds, summed over all threads, because other processes on
the machine affect them less than wall-clock time. The table is written to
benchmarks/results/suites.csv; rows of other suites are kept.
"""

import dataclasses
import importlib.metadata
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.names import check_names
from benchmarks.table import RESULTS, Row, merge, read
from ppo_jax import config as configs
from ppo_jax import envs
from ppo_jax.runs import provenance
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.train import build

STEPS = 20_000


@dataclasses.dataclass(frozen=True)
class Example:
    """The environment of a suite that is measured.

    Attributes:
        env: full name of the environment.
        package: name of the package whose version is reported.
        options: values of the configuration that differ from those of other suites.
    """

    env: str
    package: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


# All suites use 32 environments, except for JaxMARL, whose three agents must divide the number.
# With up to 16 environments, two steps share an iteration of the rollout, which would compile the
# physics twice.
EXAMPLES = {
    "gymnax": Example("gymnax:CartPole-v1", "gymnax"),
    "brax": Example("brax:inverted_pendulum", "brax"),
    "playground": Example("playground:CartpoleBalance", "playground"),
    "navix": Example("navix:Navix-Empty-8x8-v0", "navix"),
    "xminigrid": Example("xminigrid:MiniGrid-Empty-8x8", "xminigrid"),
    "craftax": Example("craftax:Craftax-Classic-Symbolic-v1", "craftax", {"reset_pool": 16}),
    "jumanji": Example("jumanji:Snake-v1", "jumanji"),
    "pgx": Example("pgx:connect_four", "pgx"),
    "jaxmarl": Example("jaxmarl:MPE_simple_spread_v3", "jaxmarl", {"num_envs": 33}),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the suites.

    Attributes:
        suites: names of the suites to measure; all installed suites by default.
        steps: environment steps for each suite; with fewer than 20,000 no file is written.
        table: only print the committed results, as in the documentation.
    """

    suites: tuple[str, ...] = ()
    steps: int = STEPS
    table: bool = False


class Seconds(NamedTuple):
    """A duration as seconds of wall-clock time and of CPU time, summed over threads."""

    wall: float
    cpu: float


class Clock:
    """A stopwatch, which starts when it is made."""

    def __init__(self) -> None:
        self._start = self._now()

    def read(self) -> Seconds:
        """The time since the start."""
        return Seconds(*(b - a for a, b in zip(self._start, self._now(), strict=True)))

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def measure(suite: str, steps: int) -> Row:
    """A row of the table, measured without compilation caches and without the first update."""
    example = EXAMPLES[suite]
    values = {"num_envs": 32, "num_steps": 64, "total_timesteps": steps, **example.options}
    config = configs.make(preset="none", env=example.env, **values)
    program = build(config)
    state = jax.jit(program.init)(jax.random.key(0))
    clock = Clock()
    step = jax.jit(program.step, donate_argnums=0).lower(state).compile(compiler_options())
    compiled = clock.read()
    state, _ = jax.block_until_ready(step(state))
    updates = max(config.num_updates - 1, 1)
    clock = Clock()
    for _ in range(updates):
        state, _ = step(state)
    jax.block_until_ready(state)
    ran = clock.read()
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(state.learner.params)):
        raise SystemExit(f"the parameters of {example.env} are not finite")
    env_steps = updates * config.num_envs * config.num_steps
    return {
        "suite": suite,
        "env": example.env,
        "version": importlib.metadata.version(example.package),
        "num_envs": config.num_envs,
        "num_steps": config.num_steps,
        "env_steps": env_steps,
        "compile_seconds": round(compiled.wall, 1),
        "compile_cpu_seconds": round(compiled.cpu, 1),
        "steps_per_second": round(env_steps / ran.wall),
        "steps_per_cpu_second": round(env_steps / ran.cpu),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def markdown(rows: list[Row]) -> str:
    """The table of docs/environments.md."""
    head = ("suite", "version", "environment", "CPU seconds to compile", "steps per CPU second")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = (
            r["suite"],
            r["version"],
            f"`{r['env']}`",
            f"{float(r['compile_cpu_seconds']):.0f}",
            f"{int(r['steps_per_cpu_second']):,}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measure the suites, merge the rows into the table and print it."""
    if options.table:
        print(markdown(read(RESULTS / "suites.csv")), end="")
        return
    check_names("suites", options.suites, EXAMPLES)
    installed = envs.suites()
    table = Table("suite", "env", "compile s", "CPU s", "steps/s", "steps/CPU s")
    for suite in options.suites or [s for s in EXAMPLES if installed[s]]:
        row = measure(suite, options.steps)
        if options.steps >= STEPS:
            merge(RESULTS / "suites.csv", [row], {"suite": [*EXAMPLES]})
        columns = (
            "env",
            "compile_seconds",
            "compile_cpu_seconds",
            "steps_per_second",
            "steps_per_cpu_second",
        )
        table.add_row(suite, *(str(row[c]) for c in columns))
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
