"""Seeds and hyperparameters in one program: `python -m ppo_jax.sweep`, `run_seeds`, `run_sweep`."""

from ppo_jax.sweep.run import run_seeds, run_sweep

__all__ = ["run_seeds", "run_sweep"]
