"""`python -m ppo_jax.plot`: draw the learning curves of runs and sweeps on one figure."""

if __name__ == "__main__":
    from ppo_jax.cli.plot import main

    main()
