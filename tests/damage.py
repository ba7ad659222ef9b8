"""Damage to the folders of runs, as caused by a failing disk."""

import json
from pathlib import Path

import jax.numpy as jnp

from ppo_jax.runs.checkpoint import Checkpoints


def add_damaged_checkpoints(run_dir: Path, updates: list[int]) -> Checkpoints:
    """Add damaged checkpoints with higher scores after the only valid one."""
    folder = run_dir / "checkpoints"
    (whole,) = folder.glob("*.json")
    checkpoints = Checkpoints(folder, json.loads(whole.read_text())["identity"], keep=100)
    for update in updates:
        checkpoints.save(update, {"x": jnp.zeros(3)}, score=1e9)
        files = [p for p in (folder / str(update)).rglob("*") if p.is_file()]
        max(files, key=lambda p: p.stat().st_size).unlink()
    return checkpoints
