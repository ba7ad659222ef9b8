"""Measurements of PureJaxRL and Rejax on some of the tasks, each in a process of its own."""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.accelerator.tasks import Measured
from benchmarks.throughput.configurations import CONFIGURATIONS, Configuration
from benchmarks.throughput.race import NAMES, ROOT, Contestant, Settings
from ppo_jax.precision import in_effect

PEERS = ("purejaxrl", "rejax")
# Configurations in the order of their importance, because there may not be time for all.
CELLS = ("cartpole-2048x32", "breakout-2048x32", "cartpole-4x128-a256", "cartpole-4x128-a2048")
ROUNDS = 3
# Seconds for one peer on one configuration: the maximum, after which it is stopped, and the
# minimum, below which it is not started.
PATIENCE, LEAST = 75.0, 30.0
# Fraction of the device's memory that each process may use, the same for ppo_jax and the peers.
MEMORY = "0.92"


def names() -> list[tuple[str, str]]:
    """Pairs (configuration, peer) in the order in which they are measured."""
    return [(cell, peer) for cell in CELLS for peer in PEERS]


def missing(peer: str, folder: Path | None, purejaxrl: Path | None) -> str:
    """The reason why a peer cannot be measured, with a remedy; "" if it can be measured."""
    place = "--peers FOLDER (pip install --target FOLDER, see --peer-requirements)"
    if folder is None and importlib.util.find_spec("rejax") is None:
        return f"not installed; {place}"
    if peer == "purejaxrl" and purejaxrl is None:
        return "requires --purejaxrl PATH, the folder of its ppo.py"
    return ""


def measure(
    cell: str,
    peer: str,
    *,
    device: str,
    folder: Path | None,
    purejaxrl: Path | None,
    patience: float,
    ours: float | None,
    smoke: bool,
) -> Measured:
    """Measure one peer on one configuration.

    Args:
        cell: name of the configuration.
        peer: name of the peer.
        device: device that ppo_jax runs on; the result of a peer on another device is rejected.
        folder: folder of the peers' packages; None if they are installed together with ours.
        purejaxrl: folder of PureJaxRL's ppo.py.
        patience: seconds after which the peer is stopped.
        ours: steps per second of ppo_jax in the same run; None if they were not measured.
        smoke: whether a tiny configuration is measured instead.
    """
    why = missing(peer, folder, purejaxrl)
    if why:
        return {"why": why}
    configuration = CONFIGURATIONS[cell]
    if smoke:
        configuration = Configuration(cell, 4, 8, hidden=(8,), agents=min(configuration.agents, 2))
    until = time.monotonic() + patience
    settings = Settings(sys.executable, purejaxrl, ROUNDS, 0.05 if smoke else 1.0, patience)
    contestant = Contestant(peer, configuration, settings, environment(folder))
    try:
        for _ in range(ROUNDS):
            settings.patience = max(until - time.monotonic(), 0.0)
            contestant.round()
    finally:
        contestant.end()
    return row_of(contestant, device, ours)


def environment(folder: Path | None) -> dict[str, str]:
    """The environment variables of a peer's process, which finds its own packages before ours."""
    own = [] if folder is None else [str(folder.resolve())]
    ours = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {
        "PYTHONPATH": os.pathsep.join([*own, str(ROOT), *ours]),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY),
    }


def row_of(contestant: Contestant, device: str, ours: float | None) -> Measured:
    """The rate of a peer, and the speed of ppo_jax relative to it."""
    if contestant.why:
        return {"why": f"error: {' '.join(contestant.why.split())[:300]}"}
    ran_on = contestant.ready["device"]
    if not device.startswith(ran_on):
        return {
            "why": f"error: the peer ran on {ran_on}, but ppo_jax on {device}; remove jax and "
            "jaxlib from the folder of the peers"
        }
    rates = sorted(r["env_steps"] / r["seconds"] for r in contestant.rounds)
    middle = rates[len(rates) // 2]
    row: Measured = {
        "value": round(middle),
        "unit": "environment steps/s",
        "low": round(rates[0]),
        "high": round(rates[-1]),
        "compile_seconds": contestant.ready["compile_seconds"],
        "peak_mb": round(max(r["peak_bytes"] for r in contestant.rounds) / 2**20, 1),
        "precision": in_effect("default"),
        "versions": json.dumps(contestant.ready["versions"]),
        "note": NAMES[contestant.name],
    }
    return row | ({"ratio": round(ours / middle, 2)} if ours else {})
