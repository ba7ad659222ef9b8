"""Entry point of `python -m ppo_jax.rlhf`."""

if __name__ == "__main__":
    from ppo_jax.cli.rlhf import main

    main()
