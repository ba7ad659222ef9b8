"""Sweeps over seeds and hyperparameters: `python -m ppo_jax.sweep`, `run_seeds`, `run_sweep`."""

from ppo_jax.sweep.run import run_seeds, run_sweep

__all__ = ["run_seeds", "run_sweep"]
