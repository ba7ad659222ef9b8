"""The contestant ppo_jax: one agent as in `ppo_jax.train`, many agents as in `ppo_jax.sweep`."""

import dataclasses
import functools
import math
import os
from argparse import Namespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.contestants import ONE_DEVICE, Unsupported
from ppo_jax import config as configs
from ppo_jax import guard
from ppo_jax.cli.sweep import one_device_per_core
from ppo_jax.config import TrainConfig
from ppo_jax.experiment import compile_run
from ppo_jax.runs.chunk import MAX_CHUNK, compiler_options
from ppo_jax.sweep import program as sweep
from ppo_jax.train import build

PACKAGES = ("gymnax", "flax", "optax")


def config_of(configuration: Configuration) -> TrainConfig:
    """The configuration of ppo_jax; values are clipped, because PureJaxRL and Rejax always clip."""
    same = {f.name for f in dataclasses.fields(Configuration)} - {"name", "agents"}
    values = {name: getattr(configuration, name) for name in same}
    return configs.make(
        preset="none",
        total_timesteps=configuration.num_envs * configuration.num_steps * 2**30,
        anneal_timesteps=math.inf,
        value_clip_eps=configuration.clip_eps,
        **values,
    )


class OneAgent:
    """A training run of one agent, which continues from round to round."""

    def __init__(self, config: TrainConfig, devices: int = 1) -> None:
        """Store the arguments; `compile` does the rest.

        Args:
            config: configuration of the agent.
            devices: number of devices that the agent is distributed over.
        """
        self.config = dataclasses.replace(config, parts=devices)
        self.devices = devices
        self.compiler_options = compiler_options()

    def compile(self) -> None:
        """Compile the program and make the initial state, as a run does."""
        self.compiled = compile_run(self.config, build(self.config), self.devices)
        self.state = self.compiled.init()

    def prepare_run(self, updates: int) -> None:
        """Nothing to prepare, because the number of updates is an argument of the program."""

    def run(self, updates: int) -> int:
        """Train in chunks, and copy the metrics of each chunk to the host."""
        done = 0
        while done < updates:
            count = min(MAX_CHUNK, updates - done)
            chunk, floats = self.compiled.chunk, self.compiled.floats
            self.state, metrics, _ = chunk(self.state, floats, jnp.int32(count))
            guard.show(metrics)
            done += count
        return updates


class ManyAgents:
    """A training run of many agents, in the batches that a sweep would use."""

    def __init__(self, config: TrainConfig, agents: int, devices: int | None = None) -> None:
        """Store the arguments; `compile` does the rest.

        Args:
            config: configuration of each agent.
            agents: number of agents on all devices.
            devices: number of devices that agents are distributed over; None for all devices.
        """
        self.config, self.agents = config, agents
        self.places = jax.devices()[:devices]
        self.devices = len(self.places)
        self.compiler_options = compiler_options()

    def compile(self) -> None:
        """Compile the program for the number of agents per batch that a sweep chooses."""
        static, floats = sweep.structure(self.config)
        devices = self.places
        compile_at = functools.partial(self._compile_at, static, devices)
        self.program = sweep.fit(self.agents, compile_at, devices)
        each = self.program.agents
        self.floats = {name: jnp.full(each, x, jnp.float32) for name, x in floats.items()}
        first = np.arange(0, self.agents, each, dtype=np.uint32)
        seeds = first[:, None] + np.arange(each, dtype=np.uint32)
        self.states = [self.program.init(jnp.asarray(s), self.floats) for s in seeds]

    def _compile_at(
        self, static: TrainConfig, devices: list[Any], width: int
    ) -> sweep.AgentsProgram:
        return sweep.compile_program(static, None, width, devices, episodes=0)

    def prepare_run(self, updates: int) -> None:
        """Nothing to prepare, because the number of updates is an argument of the program."""

    def run(self, updates: int) -> int:
        """Train all batches; steps of surplus agents in the last batch are not counted."""
        for i, state in enumerate(self.states):
            done = 0
            while done < updates:
                count = min(sweep.SLICE, updates - done)
                state, metrics, _ = self.program.advance(state, self.floats, jnp.int32(count))
                guard.show(metrics)
                done += count
            self.states[i] = state
        return updates


def prepare(configuration: Configuration, options: Namespace) -> OneAgent | ManyAgents:
    """The program of ppo_jax."""
    config = config_of(configuration)
    alone = configuration.agents == 1
    if options.devices == "one":
        return OneAgent(config) if alone else ManyAgents(config, configuration.agents, 1)
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        one_device_per_core()
    if len(jax.devices()) == 1:
        raise Unsupported(ONE_DEVICE)
    if alone:
        return OneAgent(config, len(jax.devices()))
    return ManyAgents(config, configuration.agents)
