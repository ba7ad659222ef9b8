"""`python -m ppo_jax.rlhf`."""

from ppo_jax.rlhf.command import main

if __name__ == "__main__":
    main()
