"""PPO on language models with ppo_jax and TRL, on the same shapes, for `benchmarks.rlhf`."""
