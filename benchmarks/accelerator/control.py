"""Environment steps per second, including training, at sizes that only an accelerator can use."""

import dataclasses
import importlib.util
import re
import statistics
import time
from typing import Any

import jax

from benchmarks.accelerator import roofline
from benchmarks.accelerator.tasks import Context, Measured, NotAvailable, Task
from benchmarks.throughput.configurations import CONFIGURATIONS
from benchmarks.throughput.contestants import FIRST
from benchmarks.throughput.contestants.ours import ManyAgents, OneAgent, config_of
from ppo_jax import config as configs
from ppo_jax.config import TrainConfig
from ppo_jax.precision import in_effect
from ppo_jax.sweep.program import bytes_of

UNIT = "environment steps/s"
# Updates of a run that is longer than any measurement.
MANY_UPDATES = 2**30
ROUNDS = 3
# Configurations of benchmarks.throughput, which the peers can run as well.
SHARED = (
    "cartpole-2048x32",
    "cartpole-8192x32",
    "cartpole-32768x32",
    "cartpole-131072x32",
    "cartpole-4x128-a256",
    "cartpole-4x128-a2048",
    "cartpole-8192x32-h256",
    "breakout-2048x32",
    "breakout-64x128-a256",
)
# Configurations that no peer can run in the same form: flat values of a TrainConfig.
OWN: dict[str, dict[str, Any]] = {
    "cartpole-8192x32-h256-highest": {
        "env": "CartPole-v1",
        "num_envs": 8192,
        "num_steps": 32,
        "hidden": (256, 256, 256),
        "matmul_precision": "highest",
    },
    "pong-84x84-256x32": {
        "env": "Pong",
        "env_args": ("size=84", "frames=3"),
        "num_envs": 256,
        "num_steps": 32,
        "network": "nature",
        "shared_torso": True,
        "hidden": (512,),
        "activation": "relu",
    },
    "cartpole-positions-gru-2048x32": {
        "env": "CartPolePositions-v1",
        "num_envs": 2048,
        "num_steps": 32,
        "memory": "gru",
    },
    "inverted-pendulum-2048x32": {
        "env": "brax:inverted_pendulum",
        "num_envs": 2048,
        "num_steps": 32,
        "activation": "silu",
        "normalize_obs": True,
    },
    "cartpole-balance-2048x32": {
        "env": "playground:CartpoleBalance",
        "num_envs": 2048,
        "num_steps": 32,
        "activation": "silu",
        "normalize_obs": True,
    },
}
# One agent on all devices, with the batch of the task whose name lacks "-all-devices".
ON_ALL_DEVICES = "cartpole-8192x32-all-devices"
# Suites that may not be installed, and the modules that they import.
PACKAGES = {"brax": "brax", "playground": "mujoco_playground"}
# Operations that communicate with the host, in the text of a compiled program; S(5) in a layout
# is host memory.
TRANSFER = re.compile(
    r"callback|infeed|outfeed|\bsend\(|\brecv\(|stablehlo\.(?:send|recv)|send-done|recv-done"
    r"|S\(5\)",
    re.IGNORECASE,
)


def tasks() -> list[Task]:
    """The peak rates of the device, then all configurations, beginning with small ones."""
    found = [Task("control", "ceilings", measure_ceilings, patience=60.0)]
    found += [_task(name) for name in (*SHARED, *OWN, ON_ALL_DEVICES)]
    return found


def _task(name: str) -> Task:
    return Task("control", name, lambda context: measure(name, context), least=25.0)


def measure_ceilings(context: Context) -> list[Measured]:
    """Measure the peak rates of the device; returns one row for each."""
    found = roofline.ceilings(context.smoke)
    rows = []
    for name, rate in found.items():
        unit = "GB/s" if name == "copy" else "TFLOP/s"
        precision = name if name in ("highest", "bfloat16") else "default"
        value = roofline.significant(rate, 4)
        rows.append({"part": name, "value": value, "unit": unit, "precision": precision})
    return rows


def configuration(name: str, smoke: bool) -> tuple[TrainConfig, int]:
    """(configuration, number of agents) of a task; tiny sizes for a smoke run."""
    if name == ON_ALL_DEVICES:
        name = name.removesuffix("-all-devices")
    if name in OWN:
        rollout = OWN[name]["num_envs"] * OWN[name]["num_steps"]
        total = rollout * MANY_UPDATES
        agents, config = 1, configs.make(preset="none", total_timesteps=total, **OWN[name])
    else:
        shared = CONFIGURATIONS[name]
        agents, config = shared.agents, config_of(shared)
    return (tiny(config), min(agents, 2)) if smoke else (config, agents)


def tiny(config: TrainConfig) -> TrainConfig:
    """The same program with few environments, short rollouts and narrow layers."""
    small = {
        "num_envs": 8,
        "num_steps": 8,
        "hidden": (8, 8),
        "total_timesteps": 8 * 8 * MANY_UPDATES,
    }
    if config.env == "Pong":
        small["env_args"] = ("size=42", "frames=3")
    return dataclasses.replace(config, **small)


def measure(name: str, context: Context) -> Measured:
    """Measure the training speed of one configuration.

    Raises:
        NotAvailable: the environment's suite is not installed, or there is only one device.
    """
    config, agents = configuration(name, context.smoke)
    suite = config.env.partition(":")[0]
    if suite in PACKAGES and importlib.util.find_spec(PACKAGES[suite]) is None:
        raise NotAvailable(f"{suite} is not installed; pip install 'ppo_jax[{suite}]'")
    devices = jax.device_count() if name == ON_ALL_DEVICES else 1
    if name == ON_ALL_DEVICES and devices == 1:
        raise NotAvailable("there is only one device, which the other rows measure")
    contestant: Any = OneAgent(config, devices) if agents == 1 else ManyAgents(config, agents)
    started = time.perf_counter()
    contestant.compile()
    compiled = time.perf_counter() - started
    rounds = rates(contestant.run, 0.05 if context.smoke else 1.0)
    steps = config.num_envs * config.num_steps * agents
    rate = steps * statistics.median(rounds)
    precision = in_effect(config.matmul_precision)
    return {
        "value": round(rate),
        "unit": UNIT,
        "low": round(steps * min(rounds)),
        "high": round(steps * max(rounds)),
        "compile_seconds": round(compiled, 2),
        "precision": precision,
        "note": f"{agents} x {config.num_envs} x {config.num_steps}"
        + (f", {devices} devices" if devices > 1 else ""),
        **account(contestant),
        **roofline.shares(roofline.work_of(config), rate, context.ceilings, precision),
    }


def account(contestant: OneAgent | ManyAgents) -> Measured:
    """Memory of the compiled program in MB, and the number of its operations with the host."""
    many = isinstance(contestant, ManyAgents)
    program = contestant.program.advance if many else contestant.compiled.chunk
    needed = contestant.program.bytes_needed if many else bytes_of(program)
    return {"program_mb": round(needed / 2**20, 1), "host_transfers": host_transfers(program)}


def host_transfers(compiled: Any) -> int:
    """The number of operations in a compiled program that communicate with the host."""
    return transfers_in(compiled.as_text() or "")


def transfers_in(text: str) -> int:
    """The number of operations with the host in the text of a program, StableHLO or HLO.

    Source locations in the text are ignored, because a file may be called callback.py.
    """
    source = r"metadata=\{[^}]*\}|loc\([^)]*\)|^(?:FileNames|FunctionNames|StackFrames)\b.*?\n\n"
    return len(TRANSFER.findall(re.sub(source, "", text, flags=re.DOTALL | re.MULTILINE)))


def rates(run: Any, seconds: float, first: int = FIRST) -> list[float]:
    """Updates per second in each of ROUNDS rounds.

    Args:
        run: function that trains for a number of updates and returns the number made.
        seconds: approximate duration of a round.
        first: number of updates before the measurement; as many more estimate the number of
            updates in a round.
    """
    run(first)
    started = time.perf_counter()
    run(first)
    each = (time.perf_counter() - started) / first
    found = []
    for _ in range(ROUNDS):
        wanted = max(1, round(seconds / each))
        started = time.perf_counter()
        done = run(wanted)
        each = (time.perf_counter() - started) / done
        found.append(1 / each)
    return found
