"""Speed of sweeps with different numbers of agents per device, and the time for 128 agents.

python -m benchmarks.sweep                                  agents per device, then 128 agents
python -m benchmarks.sweep --widths                         only the numbers of agents per device
python -m benchmarks.sweep --purejaxrl PATH --python EXE    128 agents of ppo_jax and PureJaxRL
python -m benchmarks.sweep --table                          print the committed results

PATH is the folder of PureJaxRL's ppo.py, and EXE a Python interpreter that can run it (gymnax<1,
distrax). Both train CartPole-v1 for 500,000 steps with PureJaxRL's configuration: 4 environments,
128 steps, 4 epochs of 4 minibatches, two layers of 64, and a learning rate that decays from 2.5e-4
to 0. The tables are written to benchmarks/results/sweep_width.csv and sweep_128.csv.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.table import RESULTS, merge, read
from ppo_jax import config as configs
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.runs import provenance
from ppo_jax.sweep import program
from ppo_jax.sweep.store import Store, read_spec

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
PEER = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import jax
from ppo import make_train
config = json.loads(sys.argv[2])
train = jax.jit(jax.vmap(make_train(config)))
keys = jax.random.split(jax.random.key(0), int(sys.argv[3]))
started = time.perf_counter()
compiled = train.lower(keys).compile()
middle = time.perf_counter()
metrics = jax.block_until_ready(compiled(keys))["metrics"]
end = time.perf_counter()
done, returns = metrics["returned_episode"][:, -40:], metrics["returned_episode_returns"][:, -40:]
last = float((returns * done).sum() / done.sum())
print(json.dumps([jax.__version__, middle - started, end - middle, last]))
"""
# PureJaxRL's configuration, as values that differ from the defaults of ppo_jax.
OURS = {
    "env": "CartPole-v1",
    "total_timesteps": 500_000,
    "num_envs": 4,
    "num_steps": 128,
    "learning_rate": 2.5e-4,
    "entropy_coef": 0.01,
    "epochs": 4,
    "minibatches": 4,
    "value_clip_eps": 0.2,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the speed of sweeps.

    Attributes:
        widths: measure only the numbers of agents per device.
        purejaxrl: folder of PureJaxRL's ppo.py.
        python: Python interpreter that runs PureJaxRL.
        seeds: number of agents of each implementation; with another number than 128 no file is
            written.
        rounds: number of runs of each implementation.
        table: only print the committed results, as in the documentation.
    """

    widths: bool = False
    purejaxrl: Path | None = None
    python: str = sys.executable
    seeds: int = 128
    rounds: int = 2
    table: bool = False


def config() -> configs.TrainConfig:
    """PureJaxRL's configuration of CartPole."""
    return configs.make(preset="none", **OURS)


PEER_CONFIG = {
    "LR": 2.5e-4, "NUM_ENVS": 4, "NUM_STEPS": 128, "TOTAL_TIMESTEPS": 5e5, "UPDATE_EPOCHS": 4,
    "NUM_MINIBATCHES": 4, "GAMMA": 0.99, "GAE_LAMBDA": 0.95, "CLIP_EPS": 0.2, "ENT_COEF": 0.01,
    "VF_COEF": 0.5, "MAX_GRAD_NORM": 0.5, "ACTIVATION": "tanh", "ENV_NAME": "CartPole-v1",
    "ANNEAL_LR": True, "DEBUG": False,
}  # fmt: skip


def width_row(width: int, devices: list[jax.Device], seconds: float = 2.0) -> dict[str, Any]:
    """Environment steps per second of all agents, without compilation.

    Args:
        width: number of agents per device.
        devices: devices that the agents are distributed over.
        seconds: approximate duration of a round in seconds.

    Returns:
        A row of the table.
    """
    static, floats = program.structure(config())
    started = time.perf_counter()
    made = program.compile_program(static, None, width, devices, episodes=0)
    compiling = time.perf_counter() - started
    arrays = {name: jnp.full(made.agents, value) for name, value in floats.items()}
    state = made.init(jnp.arange(made.agents, dtype=jnp.uint32), arrays)
    rates, count = [], max(1, 64 // made.agents)
    for _ in range(4):
        started = time.perf_counter()
        state, *_ = jax.block_until_ready(made.advance(state, arrays, jnp.int32(count)))
        taken = time.perf_counter() - started
        rates.append(count * 512 * made.agents / taken)
        count = min(program.SLICE, max(1, int(count * seconds / taken)))
    return {
        "devices": len(devices),
        "width": width,
        "steps_per_second": round(max(rates[1:])),
        "compile_seconds": round(compiling, 1),
        "device": provenance.device(),
        "jax": jax.__version__,
    }


def measure_widths() -> None:
    """Measure all numbers of agents on one device and on one device per core."""
    for devices in (jax.devices()[:1], jax.devices()):
        for width in WIDTHS:
            row = width_row(width, devices)
            print(row, flush=True)
            order = {"devices": [str(k) for k in range(1, 257)], "width": [*map(str, WIDTHS)]}
            merge(RESULTS / "sweep_width.csv", [{k: str(v) for k, v in row.items()}], order)


def ours(seeds: int) -> list[Any]:
    """Run a sweep of ppo_jax, including its evaluation and report.

    Returns:
        A list: version of jax, seconds, mean return at the end of training.
    """
    flags = [w for n, v in OURS.items() for w in (f"--{n.replace('_', '-')}", str(v))]
    words = ["-m", "ppo_jax.sweep", "--preset", "none", *flags, "--seeds", str(seeds)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep"
        started = time.perf_counter()
        _run([sys.executable, *words, "--run-dir", str(path)])
        seconds = time.perf_counter() - started
        (result,) = Store(path, read_spec(path)[0]).results()
    last = result.metrics
    episodes = last["episodes"][:, -4:]
    mean = (np.nan_to_num(last["episode_return"][:, -4:]) * episodes).sum() / episodes.sum()
    return [jax.__version__, seconds, float(mean)]


def theirs(options: Options) -> list[Any]:
    """Run PureJaxRL, compilation and training; returns the same values as `ours`."""
    words = [str(options.purejaxrl), json.dumps(PEER_CONFIG), str(options.seeds)]
    out = _run([options.python, "-c", PEER, *words])
    version, compiling, running, last = json.loads(out.splitlines()[-1])
    return [version, compiling + running, last]


def measure_agents(options: Options) -> None:
    """Measure both implementations in turns, each in a separate process."""
    found: dict[str, list] = {"ppo_jax": [], "PureJaxRL": []}
    for _ in range(options.rounds):
        found["ppo_jax"].append(ours(options.seeds))
        print("ppo_jax", found["ppo_jax"][-1], flush=True)
        if options.purejaxrl is not None:
            found["PureJaxRL"].append(theirs(options))
            print("PureJaxRL", found["PureJaxRL"][-1], flush=True)
    rows = [
        {
            "implementation": name,
            "agents": options.seeds,
            "seconds": round(float(np.median([r[1] for r in runs])), 1),
            "fastest": round(min(r[1] for r in runs), 1),
            "slowest": round(max(r[1] for r in runs), 1),
            "steps_per_second": round(options.seeds * 5e5 / float(np.median([r[1] for r in runs]))),
            "return_at_end": round(float(np.mean([r[2] for r in runs])), 1),
            "jax": runs[0][0],
            "device": f"cpu x {os.cpu_count()}",
        }
        for name, runs in found.items()
        if runs
    ]
    for row in rows:
        print(row)
    if options.seeds == Options.seeds:
        merge(RESULTS / "sweep_128.csv", rows, {"implementation": [*found]})


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{command[0]} failed:\n{result.stderr[-2000:]}")
    return result.stdout


def width_markdown() -> str:
    """The table of agents per device, as in the documentation."""
    widths = read(RESULTS / "sweep_width.csv")
    counts = [*dict.fromkeys(r["devices"] for r in widths)]
    rate = {(r["devices"], r["width"]): int(r["steps_per_second"]) for r in widths}
    lines = ["| agents per device | " + " | ".join(map(str, WIDTHS)) + " |"]
    lines += ["|---|" + "---|" * len(WIDTHS)]
    for count in counts:
        cells = [f"{rate[count, str(w)] / 1000:.0f} k" for w in WIDTHS]
        name = "1 device" if count == "1" else f"{count} devices"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def agents_markdown() -> str:
    """The table of 128 agents, as in the documentation."""
    lines = [
        "| | seconds | steps/s | return at the end of training | jax |",
        "|---|---|---|---|---|",
    ]
    for r in read(RESULTS / "sweep_128.csv"):
        rate = f"{int(r['steps_per_second']):,}"
        cells = [r["implementation"], r["seconds"], rate, r["return_at_end"], r["jax"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Run the chosen measurements and write their tables."""
    if options.table:
        print(width_markdown(), agents_markdown(), sep="\n", end="")
        return
    if options.purejaxrl is None:
        one_device_per_core()
        measure_widths()
    if not options.widths:
        measure_agents(options)


if __name__ == "__main__":
    main(tyro.cli(Options))
