"""ppo_jax as its commands run it: the loop of `ppo_jax.train`, many agents as `ppo_jax.sweep`."""

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
    """The configuration in our words; values are clipped because PureJaxRL and Rejax always do."""
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
    """A TrainState that goes on from round to round."""

    def __init__(self, config: TrainConfig, devices: int = 1) -> None:
        """Nothing is compiled yet.

        Args:
            config: of the agent.
            devices: how many share it.
        """
        self.config = dataclasses.replace(config, parts=devices)
        self.devices = devices
        self.compiler_options = compiler_options()

    def compile(self) -> None:
        """Program and first state, as a run makes them."""
        self.compiled = compile_run(self.config, build(self.config), self.devices)
        self.state = self.compiled.init()

    def prepare_run(self, updates: int) -> None:
        """How many updates is an argument of the program."""

    def run(self, updates: int) -> int:
        """Chunks of what there is room for in the log; the log comes to the host."""
        done = 0
        while done < updates:
            count = min(MAX_CHUNK, updates - done)
            chunk, floats = self.compiled.chunk, self.compiled.floats
            self.state, metrics, _ = chunk(self.state, floats, jnp.int32(count))
            guard.show(metrics)
            done += count
        return updates


class ManyAgents:
    """As many rounds of agents as a sweep would make of them, each advanced in turn."""

    def __init__(self, config: TrainConfig, agents: int, devices: int | None = None) -> None:
        """Nothing is compiled yet.

        Args:
            config: of each agent.
            agents: of all devices together.
            devices: how many to spread them over; None: all.
        """
        self.config, self.agents = config, agents
        self.places = jax.devices()[:devices]
        self.devices = len(self.places)
        self.compiler_options = compiler_options()

    def compile(self) -> None:
        """The sweep's own choice of width."""
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
        """How many updates is an argument of the program."""

    def run(self, updates: int) -> int:
        """All rounds; the last may hold agents too many, whose steps do not count."""
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
    """ppo_jax's PPO."""
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
