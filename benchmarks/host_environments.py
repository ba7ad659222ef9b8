"""Steps per second of rollouts in Python environments.

python -m benchmarks.host_environments       prints the table, writes host_environments.csv

A rollout is measured without training: the forward pass of the network, the callback and the
environment. Rates are given per second of wall-clock time and per second of CPU time, which other
processes on the machine affect less.
"""

import functools
import time

import jax

from benchmarks.table import RESULTS, Row, read, replace
from ppo_jax import envs, rollout
from ppo_jax.networks import CONVOLUTIONS, make_policy
from ppo_jax.runs import provenance

STEPS, REPEATS = 128, 3
# Environment, arguments, N, network.
CASES = (
    ("gymnasium:CartPole-v1", {}, 64, "mlp"),
    ("gymnasium:CartPole-v1", {"backend": "vector_entry_point"}, 64, "mlp"),
    ("gymnasium:CartPole-v1", {"backend": "async"}, 16, "mlp"),
    ("gymnasium:LunarLander-v3", {}, 16, "mlp"),
    ("ale:ALE/Pong-v5", {}, 8, "mlp"),
    ("ale:ALE/Pong-v5", {}, 8, "nature"),
)
COLUMNS = ("env", "backend", "num_envs", "network")
SPEEDS = ("steps_per_second", "steps_per_processor_second")
PATH = RESULTS / "host_environments.csv"


def measure(name: str, options: dict[str, str], num_envs: int, network: str) -> Row:
    """Measure a few rollouts and return the rates of the fastest.

    Args:
        name: name of the environment.
        options: arguments of the environment.
        num_envs: N, the number of parallel environments.
        network: name of the network, "mlp" or a key of CONVOLUTIONS.

    Returns:
        A row of the table.
    """
    env = envs.make(name, **options)
    vector = envs.vectorize(env, num_envs)
    policy = make_policy(
        env.observation_space, env.action_space, cnn=CONVOLUTIONS[network], shared_torso=True
    )
    state = rollout.init(jax.random.key(0), policy, vector)
    params = policy.init(jax.random.key(1), state.obs)
    collect = jax.jit(
        functools.partial(rollout.collect, env=vector, policy=policy, num_steps=STEPS, gamma=0.99)
    )
    wall, processor = [], []
    for key in jax.random.split(jax.random.key(2), REPEATS + 1):
        before = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(collect(key, params, state))[0]
        wall.append(time.perf_counter() - before[0])
        processor.append(time.process_time() - before[1])
    vector.close()
    steps = STEPS * num_envs
    own = steps / min(processor[1:])  # the first rollout compiles
    return {
        "env": name,
        "backend": options.get("backend", "sync" if name.startswith("gym") else "C++"),
        "num_envs": num_envs,
        "network": network,
        "steps_per_second": round(steps / min(wall[1:])),
        # Without the CPU time of worker processes the rate of `async` would be wrong.
        "steps_per_processor_second": "" if "async" in options.values() else round(own),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def _place(row: Row) -> int:
    """Sort key of a row: its index in CASES."""
    order = {(c[0], c[2], c[3]): i for i, c in enumerate(CASES)}
    return order.get((row["env"], int(row["num_envs"]), row["network"]), len(CASES))


def markdown() -> str:
    """The table of docs/host_environments.md."""
    lines = ["| environment | backend | N | network | steps/s | per processor second |"]
    lines.append("|---|---|---|---|---|---|")
    for row in read(PATH):
        cells = [
            row["env"].split(":", 1)[1],
            row["backend"],
            row["num_envs"],
            "two of 64" if row["network"] == "mlp" else row["network"],
            *(f"{int(row[c]):,}" if row[c] else "" for c in SPEEDS),
        ]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all cases, write and print the table."""
    replace(PATH, [measure(*case) for case in CASES], COLUMNS, _place)
    print(markdown(), end="")


if __name__ == "__main__":
    main()
