"""Reinforcement learning with verifiable rewards from random weights: `ppo-jax rlhf reason`.

measure      pass@1 and pass@k of one agent
exact        pass@1, KL and the best pass@1 at this KL, from all responses of a small task
agents       one update of many agents in one program
start        fine-tuning on worked examples until an agent is mediocre
optimise     reinforcement learning with the verifier of the task as the reward
report       table, figure and samples at the end
session      the command: both stages in one folder
"""
