"""`python -m ppo_jax.export`."""

if __name__ == "__main__":
    from ppo_jax.cli.export import main

    main()
