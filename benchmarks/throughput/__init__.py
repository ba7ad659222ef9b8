"""PPO of several projects measured against each other, each in a process of its own."""
