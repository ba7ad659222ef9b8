"""`python -m ppo_jax COMMAND`."""

if __name__ == "__main__":
    from ppo_jax.cli.main import main

    main()
