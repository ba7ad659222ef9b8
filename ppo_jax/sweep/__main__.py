"""`python -m ppo_jax.sweep`."""

from ppo_jax.sweep.command import sweep

sweep()
