"""PPO on one environment of each suite: how fast, and how long it takes to compile.

python -m benchmarks.suites                     every suite that is installed, 20,000 steps each
python -m benchmarks.suites --suites brax pgx
python -m benchmarks.suites --table             print the committed results

The table goes to benchmarks/results/suites.csv; rows of suites that were not run now stay as they
are.
"""

import dataclasses
import importlib.metadata
import time
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.table import RESULTS, Row, merge, read
from ppo_jax import config as configs
from ppo_jax import envs, report
from ppo_jax.runner import compiler_options
from ppo_jax.train import build
from ppo_jax.types import did_you_mean

STEPS = 20_000


@dataclasses.dataclass(frozen=True)
class Example:
    """What stands for a suite.

    Attributes:
        env: full name.
        package: whose version is reported.
        options: of the configuration, beyond those of all.
        kwargs: of the environment.
    """

    env: str
    package: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


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


def measure(suite: str, steps: int) -> Row:
    """A line of the table: one process, nothing cached, the first update not counted."""
    example = EXAMPLES[suite]
    values = {"num_envs": 32, "num_steps": 64, "total_timesteps": steps, **example.options}
    config = configs.make(preset="none", env=example.env, **values)
    started = time.perf_counter()
    program = build(config, envs.make(example.env, **example.kwargs))
    make_seconds = time.perf_counter() - started
    state = jax.jit(program.init)(jax.random.key(0))
    started = time.perf_counter()
    step = jax.jit(program.step, donate_argnums=0).lower(state).compile(compiler_options())
    compile_seconds = time.perf_counter() - started
    state, metrics = jax.block_until_ready(step(state))
    started = time.perf_counter()
    updates = max(config.num_updates - 1, 1)
    for _ in range(updates):
        state, metrics = step(state)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - started
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(state.learner.params)):
        raise SystemExit(f"the parameters of {example.env} are not finite")
    return {
        "suite": suite,
        "env": example.env,
        "version": importlib.metadata.version(example.package),
        "num_envs": config.num_envs,
        "num_steps": config.num_steps,
        "env_steps": updates * config.num_envs * config.num_steps,
        "make_seconds": round(make_seconds, 1),
        "compile_seconds": round(compile_seconds, 1),
        "steps_per_second": round(updates * config.num_envs * config.num_steps / seconds),
        "device": report.device(),
        "jax": jax.__version__,
    }


def markdown(rows: list[Row]) -> str:
    """The table of docs/environments.md."""
    head = ("suite", "version", "environment", "compiled in", "steps per second")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = (
            r["suite"],
            r["version"],
            f"`{r['env']}`",
            f"{float(r['compile_seconds']):.0f} s",
            f"{int(r['steps_per_second']):,}",
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
    table = Table("suite", "env", "compile s", "steps/s")
    for suite in options.suites or [s for s in EXAMPLES if installed[s]]:
        row = measure(suite, options.steps)
        if options.steps >= STEPS:
            merge(RESULTS / "suites.csv", [row], {"suite": [*EXAMPLES]})
        cells = (row["env"], str(row["compile_seconds"]), f"{row['steps_per_second']:,}")
        table.add_row(suite, *cells)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
