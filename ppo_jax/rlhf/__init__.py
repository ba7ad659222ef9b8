"""Reinforcement learning of language models: responses are trajectories, tokens are actions."""
