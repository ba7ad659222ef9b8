"""Time of an update and of a step of acting, for each memory and length of the rollouts.

python -m benchmarks.memory_cells
python -m benchmarks.memory_cells --memories gru mingru --steps 512

The update is one gradient of PPO's loss over all sequences, with a reset in each of them. All
memories have the same number of units, and the network has nothing else than the memory and its
heads. The memories alternate in every round, and a number is the median over the rounds. Times are
CPU times, so that other processes of the machine matter little, or wall-clock times on other
devices. The table is written to benchmarks/results/memory_cells.csv.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import commit
from benchmarks.table import RESULTS, merge, read
from ppo_jax.algorithms import ppo
from ppo_jax.envs import spaces
from ppo_jax.networks import MEMORIES, Policy, SequenceInputs, make_recurrent_policy
from ppo_jax.runs import provenance
from ppo_jax.types import Batch, Params

FILE = RESULTS / "memory_cells.csv"
STEPS = (32, 128, 512)
OBSERVATION, ACTIONS = spaces.Box(-1.0, 1.0, (8,)), spaces.Discrete(4)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the time of updates and steps of memories.

    Attributes:
        memories: memories to measure: gru, lstm, mingru, gtrxl.
        steps: numbers of steps of the sequences.
        sequences: number of sequences of an update.
        size: number of units of the memories.
        rounds: number of rounds, in each of which every memory is timed once.
        out: file of the table.
    """

    memories: tuple[str, ...] = MEMORIES[1:]
    steps: tuple[int, ...] = STEPS
    sequences: int = 16
    size: int = 64
    rounds: int = 9
    out: Path = FILE


def batch_of(policy: Policy, sequences: int, steps: int) -> Batch:
    """Random samples [M, T] with a new episode in the middle of each sequence."""
    draw = lambda i: jax.random.normal(jax.random.key(i), (sequences, steps))
    obs = jax.random.normal(jax.random.key(0), (sequences, steps, *OBSERVATION.shape))
    start = jnp.zeros((sequences, steps), bool).at[:, steps // 2].set(True)
    core = jax.tree.map(lambda x: x[:, None], policy.init_core(sequences))
    action = jax.random.randint(jax.random.key(1), (sequences, steps), 0, 4)
    return Batch(
        obs=SequenceInputs(obs, start, core),
        action=action,
        log_prob=jnp.full((sequences, steps), -np.log(4.0)),
        value=draw(2),
        advantage=draw(3),
        target=draw(4),
        weight=jnp.ones((sequences, steps)),
    )


class Agent(NamedTuple):
    """A policy with its parameters."""

    policy: Policy
    params: Params


def agent_of(memory: str, size: int) -> Agent:
    """An untrained agent with a memory."""
    policy = make_recurrent_policy(OBSERVATION, ACTIONS, memory=memory, memory_size=size, hidden=())
    init = jax.jit(policy.init)
    return Agent(policy, init(jax.random.key(0), jnp.zeros((1, *OBSERVATION.shape))))


def update_of(agent: Agent, sequences: int, steps: int) -> Callable[[], Any]:
    """The gradient of a batch of sequences as a function without arguments."""
    loss = ppo.make_loss(agent.policy, ppo.Config())
    batch = batch_of(agent.policy, sequences, steps)
    gradient = jax.jit(jax.grad(lambda params, batch: loss(params, batch)[0]))
    return lambda: jax.block_until_ready(gradient(agent.params, batch))


def act_of(agent: Agent, num_envs: int) -> Callable[[], Any]:
    """A step of acting in N environments as a function without arguments."""
    act, core = jax.jit(agent.policy.act), agent.policy.init_core(num_envs)
    obs, start = jnp.ones((num_envs, *OBSERVATION.shape)), jnp.zeros(num_envs, bool)
    return lambda: jax.block_until_ready(act(agent.params, core, obs, start))


def clock() -> str:
    """The name of the time that is measured: cpu or wall."""
    return "cpu" if jax.default_backend() == "cpu" else "wall"


def milliseconds(programs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each program, one number for each round; the programs alternate."""
    now = {"cpu": time.process_time, "wall": time.perf_counter}[clock()]
    for program in programs.values():
        program()
    found: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            begin = now()
            program()
            found[name].append(1e3 * (now() - begin))
    return found


def rows_of(
    update: dict[str, list[float]], act: dict[str, list[float]], steps: int, options: Options
) -> list[dict[str, Any]]:
    """The rows of one length of the sequences."""
    return [
        {
            "memory": memory,
            "steps": str(steps),
            "sequences": options.sequences,
            "size": options.size,
            "clock": clock(),
            "update_ms": round(float(np.median(update[memory])), 2),
            "update_ms_min": round(min(update[memory]), 2),
            "update_ms_max": round(max(update[memory]), 2),
            "act_ms": round(float(np.median(act[memory])), 3),
            "device": provenance.device(),
            "jax": jax.__version__,
            "commit": commit.of(Path(__file__).parents[1]),
        }
        for memory in options.memories
    ]


def markdown() -> str:
    """The table of docs/memory.md."""
    lines = ["| memory | T | update | one step of acting |", "|" + "---|" * 4]
    for r in read(FILE):
        if r["clock"] == "cpu":
            cells = (r["memory"], r["steps"], f"{r['update_ms']} ms", f"{r['act_ms']} ms")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measure, merge the rows into the table and print them."""
    steps_in_order = [str(t) for t in sorted({*STEPS, *options.steps})]
    order = {"clock": ["cpu", "wall"], "memory": [*MEMORIES[1:]], "steps": steps_in_order}
    agents = {memory: agent_of(memory, options.size) for memory in options.memories}
    programs = {memory: act_of(agent, options.sequences) for memory, agent in agents.items()}
    act = milliseconds(programs, 10 * options.rounds)
    for steps in options.steps:
        programs = {m: update_of(agent, options.sequences, steps) for m, agent in agents.items()}
        rows = rows_of(milliseconds(programs, options.rounds), act, steps, options)
        merge(options.out, rows, order)
        for row in rows:
            print(row["memory"], steps, row["update_ms"], "ms,", row["act_ms"], "ms", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
