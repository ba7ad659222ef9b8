"""The cost of the numerical guard: updates per second with and without it.

python -m benchmarks.guard

Both programs are compiled like the program of a run, and are measured in turns in one process, so
that other processes affect both equally. Times are CPU times. The rates in results/guard.csv are
the 0.9 quantiles over rounds in updates per CPU second, and the cost is computed from them.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax import config as configs
from ppo_jax.experiment import MAY_BE_NAN, first_state
from ppo_jax.runs.chunk import MAX_CHUNK, compiler_options, make_chunk
from ppo_jax.train import build

FILE = Path(__file__).parent / "results" / "guard.csv"
CASES = {
    "CartPole 4 x 128": {"env": "CartPole-v1", "num_envs": 4, "num_steps": 128},
    "CartPole 64 x 128": {"env": "CartPole-v1", "num_envs": 64, "num_steps": 128},
    "Pendulum 32 x 64": {"env": "Pendulum-v1", "num_envs": 32, "num_steps": 64},
    "Pong pixels 4 x 32": {
        "env": "ppo_jax:Pong",
        "num_envs": 4,
        "num_steps": 32,
        "network": "nature",
    },
}


def without(step: Any, rows: int = MAX_CHUNK) -> Any:
    """A chunk of updates without the guard."""

    def chunk(state: Any, count: jax.Array) -> Any:
        update = jax.jit(step)
        shapes = jax.eval_shape(update, state)[1]
        empty = jax.tree.map(lambda s: jnp.zeros((rows, *s.shape), s.dtype), shapes)

        def body(k: jax.Array, carry: Any) -> Any:
            state, metrics = update(carry[0])
            return state, jax.tree.map(lambda kept, x: kept.at[k].set(x), carry[1], metrics)

        return jax.lax.fori_loop(0, count, body, (state, empty))

    return chunk


def measure(values: dict[str, Any], rounds: int, seconds: float) -> np.ndarray:
    """[rounds, 2] updates per CPU second, without and with the guard."""
    config = configs.make(preset="none", total_timesteps=10**8, **values)
    program = build(config)
    state, count = first_state(config, program), jax.ShapeDtypeStruct((), jnp.int32)
    guarded = make_chunk(lambda s, *_: program.guarded_step(s), may_be_nan=MAY_BE_NAN)
    chunks = (without(program.step), lambda state, count: guarded(state, (), count))
    compiled = [
        jax.jit(c, donate_argnums=0).lower(state, count).compile(compiler_options()) for c in chunks
    ]
    started = time.process_time()
    state = jax.block_until_ready(compiled[0](state, jnp.int32(2)))[0]
    updates = jnp.int32(max(1, int(2 * seconds / (time.process_time() - started))))
    rates = np.zeros((rounds, 2))
    for k in range(rounds):
        for i in (0, 1) if k % 2 else (1, 0):
            started = time.process_time()
            state = jax.block_until_ready(compiled[i](state, updates))[0]
            rates[k, i] = int(updates) / (time.process_time() - started)
    return rates


def main() -> None:
    """Measure all cases and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41, help="number of rounds")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="CPU seconds of each program in a round"
    )
    arguments = parser.parse_args()
    lines = []
    for name, values in CASES.items():
        rates = measure(values, arguments.rounds, arguments.seconds)
        plain, guarded = np.quantile(rates, 0.9, axis=0)
        cost = float(1 - guarded / plain)
        lines.append([name, f"{plain:.4g}", f"{guarded:.4g}", f"{100 * cost:.2f}"])
        print(*lines[-1], flush=True)
    with FILE.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["case", "updates_per_second_without", "with", "cost_percent"])
        table.writerows(lines)


if __name__ == "__main__":
    main()
