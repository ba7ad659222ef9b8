"""Sweeps over seeds and hyperparameters: `python -m ppo_jax.sweep`, `run_seeds`, `run_sweep`."""

from typing import TYPE_CHECKING

from ppo_jax.lazy import attach

if TYPE_CHECKING:
    from ppo_jax.sweep.run import run_seeds, run_sweep

__all__ = ["run_seeds", "run_sweep"]

__getattr__, __dir__ = attach(__name__, {"run": ("run_seeds", "run_sweep")})
