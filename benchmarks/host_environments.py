"""Steps per second of a rollout in environments on the host.

python -m benchmarks.host_environments       prints the table, writes host_environments.csv

Acting alone, no learning: the network's step, the callback and the environment. Beside the
wall clock's, steps per second of processor time, which another process on the machine changes less.
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
    """The fastest of a few rollouts.

    Args:
        name: of the environment.
        options: its arguments.
        num_envs: N.
        network: name in CONVOLUTIONS.
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
    own = steps / min(processor[1:])  # the first compiles
    return {
        "env": name,
        "backend": options.get("backend", "sync" if name.startswith("gym") else "C++"),
        "num_envs": num_envs,
        "network": network,
        "steps_per_second": round(steps / min(wall[1:])),
        # That of the worker processes of `async` is not in it.
        "steps_per_processor_second": "" if "async" in options.values() else round(own),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def _place(row: Row) -> int:
    """Where a line stands in the table: in the order of CASES."""
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
    """Measure, print, write."""
    replace(PATH, [measure(*case) for case in CASES], COLUMNS, _place)
    print(markdown(), end="")


if __name__ == "__main__":
    main()
