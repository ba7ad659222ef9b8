"""The number of GPU kernels in an update, counted without a GPU.

python -m benchmarks.kernels

The chunk program of a run is compiled for an H100, which does not have to be installed. JAX's CUDA
packages (`requirements-cuda.lock`) are required, and JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 on a machine
without a driver. Each operation of the compiled program that is not free is counted once for every
iteration of its loop. With small networks and environments, starting the kernels takes most of the
time on a GPU. The table in results/kernels.csv has two rows for each task: the program as compiled
for CPUs and as compiled for accelerators (`ppo_jax.backend`).
"""

import argparse
import csv
import re
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from ppo_jax import backend
from ppo_jax import config as configs
from ppo_jax.experiment import MAY_BE_NAN
from ppo_jax.runs.chunk import make_chunk
from ppo_jax.train import build

FILE = Path(__file__).parent / "results" / "kernels.csv"
TASKS = {
    "cartpole-2048x32": {"env": "CartPole-v1", "num_envs": 2048, "num_steps": 32},
    "cartpole-8192x32": {"env": "CartPole-v1", "num_envs": 8192, "num_steps": 32},
    "pendulum-2048x32": {"env": "Pendulum-v1", "num_envs": 2048, "num_steps": 32},
}
VERSIONS = {"as on CPUs": False, "as on accelerators": True}
# Description of the device for the compiler of XLA.
DEVICE = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
}
"""
# Operations that start no kernel: they only name memory or wait.
FREE = {
    "after-all",
    "bitcast",
    "constant",
    "copy-done",
    "fusion-done",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "tuple",
}
OPERATION = re.compile(r"\s+(?:ROOT )?%[\w.\-]+ = .*?[\])}] ([a-z][a-z\-]*)\(")


class Loop(NamedTuple):
    """A loop of a compiled program.

    Attributes:
        trips: number of iterations; 1 if the program does not contain it.
        kernels: number of kernels in one iteration, including those of inner loops.
    """

    trips: int
    kernels: int


def count(text: str) -> tuple[int, list[Loop]]:
    """Count the kernels of a compiled program.

    For a conditional, the branch with the most kernels is counted.

    Args:
        text: optimised HLO of the program, from `compiled.as_text()`.

    Returns:
        (number of kernels of the whole program, its loops)
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    loops: list[Loop] = []

    def kernels(name: str) -> int:
        return sum(of(line, found[1]) for line in computations[name] if (found := _operation(line)))

    def of(line: str, operation: str) -> int:
        called = dict(re.findall(r"(body|to_apply)=%?([\w.\-]+)", line))
        if operation == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            loop = Loop(int(trips[1]) if trips else 1, kernels(called["body"]))
            loops.append(loop)
            return 1 + loop.trips * loop.kernels
        if operation == "conditional":
            branches = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            many = re.search(r"branch_computations=\{([^}]*)\}", line)
            branches += many[1].replace("%", "").split(", ") if many else []
            return 1 + max(map(kernels, branches))
        if operation == "call":
            return kernels(called["to_apply"])
        return operation not in FREE

    return kernels(entry), loops


def _operation(line: str) -> re.Match[str] | None:
    return OPERATION.match(re.sub(r"/\*.*?\*/", "", line))


def measure(values: dict[str, Any], launch_bound: bool) -> dict[str, Any]:
    """Numbers of kernels in one update, one environment step and one gradient step."""
    topology = topologies.get_topology_desc("", "cuda", target_config=DEVICE, topology="1x1x1")
    device = jax.sharding.SingleDeviceSharding(topology.devices[0])
    config = configs.make(preset="none", total_timesteps=10**8, **values)
    with mock.patch.object(backend, "launch_bound", lambda: launch_bound):
        program = build(config)
        chunk = make_chunk(lambda s, *_: program.guarded_step(s), may_be_nan=MAY_BE_NAN)
        state = jax.eval_shape(program.init, jax.random.key(0))
        jitted = jax.jit(
            lambda state, count: chunk(state, (), count), donate_argnums=0, in_shardings=device
        )
        traced = jitted.trace(state, jax.ShapeDtypeStruct((), jnp.int32))
        compiled = traced.lower(lowering_platforms=("cuda",)).compile()
    _, loops = count(compiled.as_text())
    update = loops[-1]  # the outermost loop, over the updates of a chunk
    steps = config.hyper.epochs * config.hyper.minibatches
    gradient = max(loop.kernels for loop in loops if loop.trips == steps)
    acting = [x for x in loops[:-1] if x.trips != steps and x.trips * x.kernels > config.num_steps]
    rollout = max(loop.trips * loop.kernels for loop in acting) / config.num_steps
    return {
        "kernels": update.kernels,
        "per_environment_step": rollout,
        "per_gradient_step": gradient,
    }


def main() -> None:
    """Count the kernels of all tasks and write the file."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = []
    for task, values in TASKS.items():
        for version, launch_bound in VERSIONS.items():
            rows.append({"task": task, "version": version, **measure(values, launch_bound)})
            print(rows[-1], flush=True)
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
