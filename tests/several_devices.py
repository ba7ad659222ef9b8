"""Train one agent on eight CPU devices, and print the results as JSON.

This is a separate program, because the number of devices must be set before JAX is initialised:

    python several_devices.py ALGORITHM | gradients | resumed FOLDER
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, PartitionSpec  # noqa: E402

import ppo_jax  # noqa: E402
from ppo_jax import config as configs  # noqa: E402
from ppo_jax import parallel  # noqa: E402
from ppo_jax.algorithms import ppo  # noqa: E402
from ppo_jax.experiment import job_of  # noqa: E402
from ppo_jax.runs import devices  # noqa: E402
from ppo_jax.runs.chunk import compile_chunk  # noqa: E402
from ppo_jax.train import OF_PARTS, build  # noqa: E402

# Rounding differences eventually change an action, first with the natural gradient.
UPDATES = {"trpo": 5, "large": 2}
VALUES = {
    "large": {"algorithm": "ppo", "num_steps": 256},  # many samples and few parameters
    "gru": {
        "algorithm": "ppo", "memory": "gru", "minibatches": 2, "normalize_obs": True,
        "normalize_reward": True, "target_kl": 0.003, "num_steps": 32,
    },
    "reinforce": {"algorithm": "reinforce", "num_steps": 500, "baseline": "leave_one_out"},
}  # fmt: skip


def resumed(folder: str) -> None:
    """A run that starts on 4 devices and continues on others, and an uninterrupted run."""
    config = configs.make(preset="none", num_envs=16, num_steps=16, total_timesteps=256 * 20)
    options = {"eval_episodes": 4, "eval_every": 4}
    path = Path(folder) / "run"
    callback = lambda progress, state: progress.update >= 8
    first = ppo_jax.run(config, path, devices=4, callbacks=[callback], **options)
    found = {
        "first": [first.summary["updates"], first.summary["device"], len(first.state.rollout.obs)]
    }
    for number in (1, 2, "all"):
        shutil.copytree(path, copy := Path(folder) / f"on_{number}")
        result = ppo_jax.run(config, resume=copy, devices=number, **options)
        found[str(number)] = [result.summary["updates"], result.summary["eval_return_mean"]]
        found[f"{number} params"] = _numbers(result.state.learner.params)
    whole = ppo_jax.run(config, Path(folder) / "whole", devices=4, **options)
    found["whole params"] = _numbers(whole.state.learner.params)
    agent = ppo_jax.load(path)
    found["returns"] = ppo_jax.evaluate(agent, 4).episode_return.tolist()
    print(json.dumps(found))


def _numbers(tree: Any) -> list[list[float]]:
    return [np.asarray(x).ravel().tolist() for x in jax.tree.leaves(tree)]


def gradients() -> None:
    """Largest differences between 8 devices and one device, computed before any optimiser step."""
    import test_parallel as tests

    found = {}
    for name in ("ppo", "trpo"):
        policy, config, params, batch = tests.policy_and_batch(name)
        if name == "ppo":
            computed = tests.gradient(ppo.make_loss(policy, config))
        else:
            computed = tests.natural_gradient(policy, config, params, batch)
        mesh = Mesh(np.array(jax.devices()), (parallel.DEVICES,))
        whole, each = PartitionSpec(), PartitionSpec(parallel.DEVICES)
        split = jax.shard_map(
            computed, mesh=mesh, in_specs=(whole, each), out_specs=whole, check_vma=False
        )
        theirs, ours = jax.jit(computed)(params, batch), jax.jit(split)(params, batch)
        differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max().item(), theirs, ours)
        found[name] = max(jax.tree.leaves(differences))
    print(json.dumps(found))


def main(name: str) -> None:
    """Updates with 8 parts on one device and on several devices, and their collective
    operations."""
    updates = UPDATES.get(name, 20)
    values = VALUES.get(name, {"algorithm": name, "num_steps": 32})
    config = configs.make(
        preset="none", num_envs=64, parts=8, total_timesteps=values["num_steps"] * 64 * 40, **values
    )
    program = build(config)
    job, found = job_of(config, program), {}
    for number in {"large": (1, 4), "ppo": (1, 4, 8)}.get(name, (1, 8)):
        layout = devices.layout(number, OF_PARTS)
        state = job.init() if layout is None else layout.place(job.init())
        chunk = compile_chunk(
            job.step, state, job.floats, rows=updates, may_be_nan=job.may_be_nan, layout=layout
        )
        costs, memory = chunk.cost_analysis(), chunk.memory_analysis()
        kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
        text = chunk.as_text()
        state, metrics, outcome = jax.block_until_ready(
            chunk(state, job.floats, jnp.int32(updates))
        )
        found[number] = {
            "flops": costs["flops"],
            "bytes": costs["bytes accessed"],
            "memory": memory.temp_size_in_bytes,
            "collectives": {k: text.count(f" {k}(") + text.count(f" {k}-start(") for k in kinds},
            "made": int(outcome.made),
            "params": _numbers(state.learner.params),
            "rollout": [
                len(x.sharding.device_set) for x in jax.tree.leaves(state.rollout.env_state)
            ],
            "metrics": {k: np.asarray(x)[0].item() for k, x in metrics.items()},
        }
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "resumed":
        resumed(sys.argv[2])
    elif sys.argv[1] == "gradients":
        gradients()
    else:
        main(sys.argv[1])
