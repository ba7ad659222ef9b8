"""PPO on one environment of each suite: how fast, and how long it takes to compile.

python -m benchmarks.suites                     every suite that is installed, 20,000 steps each
python -m benchmarks.suites --suites brax pgx
python -m benchmarks.suites --table             print the committed results

On a machine that other work shares seconds on the wall say little: the table has those of the
processor, of all the threads together.

The table goes to benchmarks/results/suites.csv; rows of suites that were not run now stay as they
are.
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

from benchmarks.table import RESULTS, Row, merge, read
from ppo_jax import config as configs
from ppo_jax import envs
from ppo_jax.config.options import did_you_mean
from ppo_jax.runs import provenance
from ppo_jax.runs.chunk import compiler_options
from ppo_jax.train import build

STEPS = 20_000


@dataclasses.dataclass(frozen=True)
class Example:
    """What stands for a suite.

    Attributes:
        env: full name.
        package: whose version is reported.
        options: of the configuration, beyond those of all.
    """

    env: str
    package: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


# Thirty-two environments; agents come in threes. Up to sixteen, two steps share an iteration of the
# rollout, which compiles the physics twice.
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
        suites: which; all that are installed if none is named.
        steps: environment steps of each; with fewer than the published table has, nothing is
            written.
        table: only print the committed results, as the documentation has them.
    """

    suites: tuple[str, ...] = ()
    steps: int = STEPS
    table: bool = False


class Seconds(NamedTuple):
    """How long something took, on the wall and of the process's threads together."""

    wall: float
    cpu: float


class Clock:
    """Started when made."""

    def __init__(self) -> None:
        self._start = self._now()

    def read(self) -> Seconds:
        """Since then."""
        return Seconds(*(b - a for a, b in zip(self._start, self._now(), strict=True)))

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def measure(suite: str, steps: int) -> Row:
    """A line of the table: one process, nothing cached, the first update not counted."""
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
    """Run the suites, merge the table, print."""
    if options.table:
        print(markdown(read(RESULTS / "suites.csv")), end="")
        return
    unknown = set(options.suites) - set(EXAMPLES)
    if unknown:
        raise SystemExit(f"unknown suite {min(unknown)!r}; {did_you_mean(min(unknown), EXAMPLES)}")
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
