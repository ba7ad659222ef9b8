"""The contestant Stable-Baselines3: PPO in PyTorch on the CPU, with DummyVecEnv of Gymnasium.

Its defaults are used: a Monitor around every environment, the number of threads that PyTorch
chooses, and statistics for a log, which is not written.
"""

from argparse import Namespace
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.contestants import ONE_AGENT, Unsupported, require

PACKAGES = ("stable-baselines3", "gymnasium", "numpy")
ENVS = ("CartPole-v1", "Pendulum-v1")
ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


class Program:
    """A training run that continues from round to round; SBX has the same interface."""

    def __init__(
        self, ppo: Any, activation: Any, configuration: Configuration, compile_trains: bool
    ) -> None:
        """Make the environments and the model.

        Args:
            ppo: class of the algorithm.
            activation: activation function in the form that the class requires.
            configuration: configuration to train.
            compile_trains: whether the first update compiles, so that it is part of `compile`.
        """
        require(configuration, ENVS, "Gymnasium has no such environment")
        self.steps_per_update = configuration.steps_per_update
        self.compile_trains = compile_trains
        layers = list(configuration.hidden)
        self.model = ppo(
            "MlpPolicy",
            make_vec_env(
                configuration.env, n_envs=configuration.num_envs, seed=0, vec_env_cls=DummyVecEnv
            ),
            n_steps=configuration.num_steps,
            batch_size=configuration.minibatch_size,
            n_epochs=configuration.epochs,
            learning_rate=configuration.learning_rate,
            gamma=configuration.gamma,
            gae_lambda=configuration.gae_lambda,
            clip_range=configuration.clip_eps,
            ent_coef=configuration.entropy_coef,
            vf_coef=configuration.value_coef,
            max_grad_norm=configuration.max_grad_norm,
            policy_kwargs={"net_arch": {"pi": layers, "vf": layers}, "activation_fn": activation},
            seed=0,
            device="cpu",
        )

    def compile(self) -> None:
        """Run the first update, if it compiles."""
        if self.compile_trains:
            self.run(1)

    def prepare_run(self, updates: int) -> None:
        """Nothing to prepare, because the program runs any number of updates."""

    def run(self, updates: int) -> int:
        """Continue training for a number of updates."""
        before = self.model.num_timesteps
        self.model.learn(
            updates * self.steps_per_update, log_interval=None, reset_num_timesteps=False
        )
        return (self.model.num_timesteps - before) // self.steps_per_update


def prepare(configuration: Configuration, options: Namespace) -> Program:
    """The program of Stable-Baselines3."""
    if options.devices != "one":
        raise Unsupported(ONE_AGENT)
    return Program(PPO, ACTIVATIONS[configuration.activation], configuration, compile_trains=False)
