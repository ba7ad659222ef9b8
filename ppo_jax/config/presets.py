"""Presets: tuned hyperparameters by name. A preset belongs to one environment and one algorithm. If
there are several for both, the first is their default.

The returns that the presets reach over many seeds are in benchmarks/results: learning.csv for PPO,
suite_returns.csv for tasks of optional suites, reppo.csv for REPPO, family.csv for the others.
Those of Pong, with one to three agents each, are in pong.csv. The presets of PPO for CartPole,
Acrobot, Pendulum and MountainCarContinuous were compared with a random search,
benchmarks/tuning.py.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # PPO
    "cartpole": {
        "env": "CartPole-v1",
        "algorithm": "ppo",
        "total_timesteps": 500_000,
        "num_envs": 8,
        "num_steps": 64,
        "learning_rate": 2e-3,
        "gamma": 0.98,
        "clip_eps": 0.1,
    },
    "cartpole_continuous": {
        "env": "CartPoleContinuous-v1",
        "algorithm": "ppo",
        "total_timesteps": 200_000,
        "num_envs": 4,
        "num_steps": 128,
        "learning_rate": 1.1e-3,
        "gamma": 0.98,
        "clip_eps": 0.1,
    },
    # Recurrent policies: feed-forward policies cannot solve these two environments.
    "cartpole_positions": {
        "env": "CartPolePositions-v1",
        "algorithm": "ppo",
        "total_timesteps": 300_000,
        "num_envs": 16,
        "num_steps": 128,
        "memory": "gru",
        "normalize_reward": True,
        "learning_rate": 1e-3,
    },
    "memory_chain": {
        "env": "MemoryChain-bsuite",
        "algorithm": "ppo",
        "total_timesteps": 100_000,
        "num_envs": 32,
        "num_steps": 32,
        "memory": "gru",
        "learning_rate": 2e-3,
    },
    "acrobot": {
        "env": "Acrobot-v1",
        "algorithm": "ppo",
        "total_timesteps": 500_000,
        "num_envs": 32,
        "num_steps": 64,
        "normalize_obs": True,
        "learning_rate": 5.8e-3,
        "epochs": 10,
        "minibatches": 8,
        "gamma": 0.995,
        "gae_lambda": 0.9,
        "clip_eps": 0.2,
    },
    "pendulum": {
        "env": "Pendulum-v1",
        "algorithm": "ppo",
        "total_timesteps": 500_000,
        "num_envs": 8,
        "num_steps": 128,
        "normalize_reward": True,
        "learning_rate": 1e-3,
        "epochs": 10,
        "minibatches": 8,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "clip_eps": 0.1,
    },
    "mountain_car": {
        "env": "MountainCar-v0",
        "algorithm": "ppo",
        "total_timesteps": 1_000_000,
        "num_envs": 16,
        "num_steps": 128,
        "normalize_obs": True,
        "normalize_reward": True,
        "learning_rate": 4e-3,
        "gamma": 0.995,
    },
    "mountain_car_continuous": {
        "env": "MountainCarContinuous-v0",
        "algorithm": "ppo",
        "total_timesteps": 300_000,
        "num_envs": 8,
        "num_steps": 256,
        "log_std_init": 1.0,
        "normalize_obs": True,
        "normalize_reward": True,
        "learning_rate": 3.6e-3,
        "epochs": 10,
        "minibatches": 8,
        "gamma": 0.999,
        "entropy_coef": 0.003,
    },
    # Without convolutions training is faster on CPUs than with a small CNN (docs/pong.md).
    "pong": {
        "env": "Pong",
        "env_args": ("size=42", "frames=3", "difficulty=easy", "credit=point"),
        "algorithm": "ppo",
        "total_timesteps": 6_000_000,
        "num_envs": 64,
        "num_steps": 128,
        "hidden": (128, 128),
        "activation": "relu",
        "frame_mix": "differences",
        "shared_torso": True,
        "learning_rate": 1e-3,
        "gamma": 0.997,
        "epochs": 3,
        "minibatches": 8,
        "entropy_coef": 0.005,
    },
}

# The other algorithms on four environments: NAME_ALGORITHM is for the environment of preset NAME.
_FAMILY: dict[str, dict[str, Any]] = {
    "cartpole_reinforce": {
        "num_envs": 8,
        "num_steps": 600,
        "learning_rate": 2e-3,
        "gamma": 1.0,
    },
    "cartpole_actor_critic": {
        "num_envs": 16,
        "num_steps": 16,
        "learning_rate": 6e-3,
        "gamma": 0.98,
        "entropy_coef": 0.01,
    },
    "cartpole_a2c": {
        "num_envs": 8,
        "num_steps": 16,
        "learning_rate": 5e-3,
        "gamma": 0.98,
    },
    "cartpole_trpo": {
        "num_envs": 8,
        "num_steps": 128,
        "learning_rate": 2e-3,
        "gamma": 0.98,
        "critic_epochs": 5,
    },
    "cartpole_ppo_kl": {
        "num_envs": 8,
        "num_steps": 64,
        "learning_rate": 2e-3,
        "gamma": 0.98,
    },
    "cartpole_continuous_reinforce": {
        "num_envs": 8,
        "num_steps": 600,
        "learning_rate": 5e-3,
        "gamma": 1.0,
    },
    "cartpole_continuous_actor_critic": {
        "num_envs": 16,
        "num_steps": 16,
        "learning_rate": 5.5e-3,
        "gamma": 0.97,
        "entropy_coef": 0.01,
    },
    "cartpole_continuous_a2c": {
        "num_envs": 8,
        "num_steps": 16,
        "learning_rate": 3e-3,
        "gamma": 0.98,
    },
    "cartpole_continuous_trpo": {
        "num_envs": 8,
        "num_steps": 128,
        "learning_rate": 2e-3,
        "gamma": 0.98,
        "critic_epochs": 5,
    },
    "cartpole_continuous_ppo_kl": {
        "num_envs": 4,
        "num_steps": 128,
        "learning_rate": 1.1e-3,
        "gamma": 0.98,
    },
    "acrobot_reinforce": {
        "num_envs": 8,
        "num_steps": 600,
        "normalize_obs": True,
        "learning_rate": 1e-2,
        "entropy_coef": 0.5,
    },
    "acrobot_actor_critic": {
        "num_envs": 16,
        "num_steps": 16,
        "normalize_obs": True,
        "learning_rate": 8e-3,
        "gamma": 0.98,
        "entropy_coef": 0.01,
    },
    "acrobot_a2c": {
        "num_envs": 32,
        "num_steps": 16,
        "normalize_obs": True,
        "learning_rate": 4e-3,
    },
    "acrobot_trpo": {
        "num_envs": 32,
        "num_steps": 64,
        "normalize_obs": True,
        "learning_rate": 3e-3,
        "gae_lambda": 0.9,
        "critic_epochs": 5,
    },
    "acrobot_ppo_kl": {
        "num_envs": 32,
        "num_steps": 64,
        "normalize_obs": True,
        "learning_rate": 2e-3,
        "epochs": 10,
        "minibatches": 8,
        "gae_lambda": 0.9,
    },
    "pendulum_reinforce": {
        "num_envs": 16,
        "num_steps": 200,
        "learning_rate": 1e-2,
        "gamma": 0.9,
    },
    "pendulum_actor_critic": {
        "num_envs": 16,
        "num_steps": 16,
        "normalize_reward": True,
        "learning_rate": 2e-3,
        "gamma": 0.9,
    },
    "pendulum_a2c": {
        "num_envs": 8,
        "num_steps": 32,
        "normalize_reward": True,
        "learning_rate": 6e-3,
        "gamma": 0.98,
        "max_grad_norm": 10.0,
    },
    "pendulum_trpo": {
        "num_envs": 8,
        "num_steps": 128,
        "normalize_reward": True,
        "max_kl": 0.02,
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "critic_epochs": 5,
    },
    "pendulum_ppo_kl": {
        "num_envs": 8,
        "num_steps": 128,
        "normalize_reward": True,
        "learning_rate": 1e-3,
        "epochs": 10,
        "minibatches": 8,
        "gamma": 0.98,
        "gae_lambda": 0.8,
    },
    "pendulum_reppo": {
        "num_envs": 16,
        "num_steps": 64,
        "activation": "silu",
        "norm": "layer",
        "squash": True,
        "value_head": "hl_gauss",
        "value_bins": 101,
        "value_low": -6.0,
        "value_high": 1.0,
        "normalize_obs": True,
        "normalize_reward": True,
        "learning_rate": 2e-3,
        "epochs": 4,
        "minibatches": 8,
        "gamma": 0.98,
        "entropy_coef": 0.1,
        "target_entropy": 0.0,
        "max_grad_norm": 10.0,
    },
}
for _name, _values in _FAMILY.items():
    _base = next(
        base
        for base in ("cartpole_continuous", "cartpole", "acrobot", "pendulum")
        if _name.startswith(base)
    )
    PRESETS[_name] = {
        "env": PRESETS[_base]["env"],
        "algorithm": _name.removeprefix(f"{_base}_"),
        "total_timesteps": 500_000,
        **_values,
    }

# Convolutions on images of 28x28 pixels, whose strides cover the whole image (docs/pong.md). The
# default for Pong is the preset before.
PRESETS["pong_cnn"] = {
    **PRESETS["pong"],
    "env_args": ("size=28", "frames=3", "difficulty=easy", "credit=point"),
    "total_timesteps": 4_000_000,
    "network": "small",
    "hidden": (128,),
}

# One gradient step per rollout, on images of 26x26 pixels (docs/pong.md).
PRESETS["pong_a2c"] = {
    "env": "Pong",
    "env_args": ("size=26", "frames=3", "difficulty=easy", "credit=point"),
    "algorithm": "a2c",
    "total_timesteps": 10_000_000,
    "num_envs": 64,
    "num_steps": 16,
    "hidden": (64, 64),
    "activation": "relu",
    "frame_mix": "differences",
    "shared_torso": True,
    "learning_rate": 2e-3,
    "gamma": 0.99,
    "entropy_coef": 0.01,
    "normalize_advantage": True,
}

# The MinAtar games share their values. An MLP on the [10, 10, C] binary pixels reaches the
# published returns (benchmarks/results/learning.csv), and is faster on CPUs than a small CNN.
for _game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"):
    PRESETS[_game.lower()] = {
        "env": f"{_game}-MinAtar",
        "algorithm": "ppo",
        "total_timesteps": 10_000_000,
        "num_envs": 64,
        "num_steps": 128,
        "hidden": (128, 128),
        "activation": "relu",
        "learning_rate": 2e-3,
        "minibatches": 8,
        "entropy_coef": 0.01,
    }

# The values for Atari are those of Schulman et al. 2017 (Proximal Policy Optimization Algorithms,
# table 5); its 40 million frames are 10 million steps. This preset has not been run here yet.
PRESETS["pong_atari"] = {
    "env": "ale:ALE/Pong-v5",
    "algorithm": "ppo",
    "total_timesteps": 10_000_000,
    "num_envs": 8,
    "num_steps": 128,
    "hidden": (512,),
    "activation": "relu",
    "network": "nature",
    "shared_torso": True,
    "learning_rate": 2.5e-4,
    "epochs": 4,
    "minibatches": 4,
    "clip_eps": 0.1,
    "entropy_coef": 0.01,
}

# Small images and the network of pong_cnn, for CPUs (docs/atari.md).
PRESETS["pong_atari_small"] = {
    "env": "ale:PongNoFrameskip-v4",
    "env_args": ("size=44", "frames=3"),
    "algorithm": "ppo",
    "total_timesteps": 2_000_000,
    "num_envs": 32,
    "num_steps": 128,
    "hidden": (128,),
    "activation": "relu",
    "network": "small",
    "frame_mix": "differences",
    "shared_torso": True,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "epochs": 3,
    "minibatches": 8,
    "entropy_coef": 0.01,
}

# Environments of optional suites. tests/test_suites.py trains navix_empty and inverted_pendulum,
# benchmarks/suite_returns.py the others.
PRESETS["navix_empty"] = {
    "env": "navix:Navix-Empty-8x8-v0",
    "algorithm": "ppo",
    "total_timesteps": 300_000,
    "num_envs": 32,
    "num_steps": 128,
    "learning_rate": 1e-3,
    "entropy_coef": 0.01,
}
# The effect of an action shows within about ten steps: γ is that of Brax's own hyperparameters.
PRESETS["inverted_pendulum"] = {
    "env": "brax:inverted_pendulum",
    "algorithm": "ppo",
    "total_timesteps": 2_000_000,
    "num_envs": 256,
    "num_steps": 32,
    "activation": "silu",
    "squash": True,
    "normalize_obs": True,
    "learning_rate": 1e-3,
    "epochs": 4,
    "minibatches": 16,
    "gamma": 0.97,
    "entropy_coef": 0.005,
}

# Puzzles and worlds on grids share their values.
for _name, _values in {
    "doorkey": {
        "env": "navix:Navix-DoorKey-8x8-v0",
        "env_args": ("observation=symbolic_first_person", "max_steps=640"),
        "total_timesteps": 2_000_000,
    },
    "xland_doorkey": {"env": "xminigrid:MiniGrid-DoorKey-8x8", "total_timesteps": 4_000_000},
    "snake": {"env": "jumanji:Snake-v1", "total_timesteps": 2_000_000},
    "game_2048": {
        "env": "pgx:2048",
        "total_timesteps": 1_000_000,
        "normalize_reward": True,
        "gamma": 0.997,
    },
    "craftax_classic": {
        "env": "craftax:Craftax-Classic-Symbolic-v1",
        "total_timesteps": 1_000_000,
        "num_steps": 64,
        "hidden": (256, 256),
        "activation": "tanh",
        "reset_pool": 16,
    },
    # 8,268 inputs, which determine the cost of an update.
    "craftax": {
        "env": "craftax:Craftax-Symbolic-v1",
        "total_timesteps": 1_000_000,
        "num_steps": 64,
        "activation": "tanh",
        "reset_pool": 32,
    },
}.items():
    PRESETS[_name] = {
        "algorithm": "ppo",
        "num_envs": 64,
        "num_steps": 128,
        "hidden": (128, 128),
        "activation": "relu",
        "learning_rate": 1e-3,
        "epochs": 4,
        "minibatches": 8,
        "entropy_coef": 0.01,
        **_values,
    }
