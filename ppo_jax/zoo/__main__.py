"""`python -m ppo_jax.zoo`."""

if __name__ == "__main__":
    from ppo_jax.cli.zoo import main

    main()
