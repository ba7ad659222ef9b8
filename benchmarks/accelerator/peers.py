"""PureJaxRL and Rejax on some of the same tasks, in the same run, each in a process of its own."""

import importlib.util
import json
import os
import sys
from pathlib import Path

from benchmarks.accelerator.tasks import Measured
from benchmarks.throughput.configurations import CONFIGURATIONS, Configuration
from benchmarks.throughput.race import NAMES, ROOT, Contestant, Settings

PEERS = ("purejaxrl", "rejax")
# The cells that say most first: there may not be time for all.
CELLS = ("cartpole-2048x32", "breakout-2048x32", "cartpole-4x128-a256", "cartpole-4x128-a2048")
ROUNDS = 3
PATIENCE = 75.0


def names() -> list[tuple[str, str]]:
    """(cell, peer) in the order in which they are measured."""
    return [(cell, peer) for cell in CELLS for peer in PEERS]


def missing(peer: str, folder: Path | None, purejaxrl: Path | None) -> str:
    """Why a peer cannot take part, and what to do; "" if it can."""
    place = "--peers FOLDER (pip install --target FOLDER, see --peer-requirements)"
    if folder is None and importlib.util.find_spec("rejax") is None:
        return f"not installed; {place}"
    if peer == "purejaxrl" and purejaxrl is None:
        return "needs --purejaxrl PATH, the folder of its ppo.py"
    return ""


def measure(
    cell: str,
    peer: str,
    *,
    folder: Path | None,
    purejaxrl: Path | None,
    patience: float,
    ours: float | None,
    smoke: bool,
) -> Measured:
    """One peer on one configuration.

    Args:
        cell: name of the configuration.
        peer: name of the contestant.
        folder: of the peers' packages; None: they are installed beside ours.
        purejaxrl: folder of PureJaxRL's ppo.py.
        patience: seconds after which it is given up.
        ours: steps per second of ppo_jax in the same run; None if they were not measured.
        smoke: a tiny configuration.
    """
    why = missing(peer, folder, purejaxrl)
    if why:
        return {"why": why}
    configuration = CONFIGURATIONS[cell]
    if smoke:
        configuration = Configuration(cell, 4, 8, hidden=(8,), agents=min(configuration.agents, 2))
    path = os.pathsep.join([*([] if folder is None else [str(folder.resolve())]), str(ROOT)])
    settings = Settings(sys.executable, purejaxrl, ROUNDS, 0.05 if smoke else 1.0, patience)
    contestant = Contestant(peer, configuration, settings, {"PYTHONPATH": path})
    try:
        for _ in range(ROUNDS):
            contestant.round()
    finally:
        contestant.end()
    return row_of(contestant, ours)


def row_of(contestant: Contestant, ours: float | None) -> Measured:
    """Its rate, and how many times faster ppo_jax is."""
    if contestant.why:
        return {"why": contestant.why}
    rates = sorted(r["env_steps"] / r["seconds"] for r in contestant.rounds)
    middle = rates[len(rates) // 2]
    row: Measured = {
        "value": round(middle),
        "unit": "environment steps/s",
        "low": round(rates[0]),
        "high": round(rates[-1]),
        "compile_seconds": contestant.ready["compile_seconds"],
        "peak_mb": round(max(r["peak_bytes"] for r in contestant.rounds) / 2**20, 1),
        "precision": "default",
        "versions": json.dumps(contestant.ready["versions"]),
        "note": NAMES[contestant.name],
    }
    return row | ({"ratio": round(ours / middle, 2)} if ours else {})
