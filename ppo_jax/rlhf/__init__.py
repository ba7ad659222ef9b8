"""PPO on language models: a response is a trajectory, a token an action."""
