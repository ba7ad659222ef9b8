"""`python -m ppo_jax.plot` (`ppo_jax.analysis.plot`)."""

if __name__ == "__main__":
    from ppo_jax.cli.plot import main

    main()
