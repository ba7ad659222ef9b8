"""Speed of PPO in several projects, each measured in a separate process."""
