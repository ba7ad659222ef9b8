"""The command `python -m ppo_jax.sweep`."""

if __name__ == "__main__":
    from ppo_jax.cli.sweep import main

    main()
