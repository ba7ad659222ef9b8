"""The contestant SBX: rollouts of Stable-Baselines3, and a jitted JAX update per minibatch."""

from argparse import Namespace

import flax.linen as nn
import sbx

from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.contestants import ONE_AGENT, Unsupported
from benchmarks.throughput.contestants.sb3 import Program

PACKAGES = ("sbx-rl", "stable-baselines3", "gymnasium", "flax", "optax", "numpy")


def prepare(configuration: Configuration, options: Namespace) -> Program:
    """The program of SBX."""
    if options.devices != "one":
        raise Unsupported(ONE_AGENT)
    activation = getattr(nn, configuration.activation)
    return Program(sbx.PPO, activation, configuration, compile_trains=True)
