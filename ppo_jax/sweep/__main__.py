"""`python -m ppo_jax.sweep`."""

if __name__ == "__main__":
    from ppo_jax.sweep.command import sweep

    sweep()
