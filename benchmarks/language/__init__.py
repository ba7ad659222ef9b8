"""PPO on language models, ours and TRL's, on the same shapes: what `benchmarks.rlhf` runs."""
