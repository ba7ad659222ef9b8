"""The contestant Brax: its PPO on gymnax's Pendulum, because it supports continuous actions only.

Some properties cannot be changed: it updates statistics of observations even without normalisation,
resets episodes to the initial state of each environment (in addition to gymnax's own reset), uses
minibatches of whole rollouts, and recomputes advantages in every minibatch. The epsilon of Adam is
1e-8. Between two segments it works on the host. Brax 0.14 calls `jax.device_put_replicated`, which
JAX 0.10 no longer has, so this module defines it. Brax can train one agent on several devices, by
splitting the environments and averaging the gradients.
"""

import functools
import threading
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env, State
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.contestants import (
    ONE_DEVICE,
    FixedLength,
    Train,
    Unsupported,
    all_devices,
    require,
)

PACKAGES = ("brax", "gymnax", "flax", "optax")
# Number of segments of the training run, more than are ever measured.
SEGMENTS = 10**6
# Maximum episode length, longer than gymnax's episodes, so that it has no effect.
EPISODE_LENGTH = 1000


class FromGymnax(Env):
    """A gymnax environment for Brax; in gymnax's own wrapper, properties of Brax are methods."""

    def __init__(self, name: str) -> None:
        self.env, self.params = gymnax.make(name)

    def reset(self, rng: jax.Array) -> State:
        """Start an episode; the state contains the PRNG key of the next steps."""
        key, reset_key = jax.random.split(rng)
        obs, inner = self.env.reset(reset_key, self.params)
        zero = jnp.zeros(())
        return State(inner, obs, reward=zero, done=zero, info={"key": key})

    def step(self, state: State, action: jax.Array) -> State:
        """Step the environment, which resets itself at the end of an episode."""
        key, step_key = jax.random.split(state.info["key"])
        obs, inner, reward, done, _ = self.env.step(
            step_key, state.pipeline_state, action, self.params
        )
        return state.replace(
            pipeline_state=inner,
            obs=obs,
            reward=reward,
            done=done.astype(jnp.float32),
            info={**state.info, "key": key},
        )

    @property
    def observation_size(self) -> int:
        """The size of an observation."""
        return self.env.observation_space(self.params).shape[0]

    @property
    def action_size(self) -> int:
        """The size of an action."""
        return self.env.action_space(self.params).shape[0]

    @property
    def backend(self) -> str:
        """The name of the physics engine; there is none."""
        return "gymnax"


def device_put_replicated(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A replacement for the former `jax.device_put_replicated`.

    Args:
        tree: pytree of arrays.
        devices: the D devices of the training run.

    Returns:
        The arrays with a leading axis of D copies, sharded as pmap returns them; with another
        sharding the second segment would be compiled again.
    """
    mesh = Mesh(np.array(devices), (ppo._PMAP_AXIS_NAME,))
    sharding = NamedSharding(mesh, PartitionSpec(ppo._PMAP_AXIS_NAME))

    def put(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        copies = jnp.broadcast_to(leaf[None], (len(devices), *leaf.shape))
        return jax.device_put(copies, sharding)

    return jax.tree.map(put, tree)


class _Stop(Exception):
    """Raised inside Brax's training function to leave it."""


class Segments:
    """A training run that pauses after every segment; `ppo.train` runs in a thread."""

    def __init__(self, configuration: Configuration, devices: int, updates: int) -> None:
        """Start the thread, compile, and train the first segment.

        Args:
            configuration: configuration to train.
            devices: number of devices.
            updates: number of updates in each segment.
        """
        self.steps_per_segment = updates * configuration.steps_per_update
        self.steps, self.stopped = 0, False
        self.failure: BaseException | None = None
        self.go, self.arrived = threading.Semaphore(0), threading.Semaphore(0)
        arguments = (configuration, devices, self.steps_per_segment)
        self.thread = threading.Thread(target=self._train, args=arguments, daemon=True)
        self.thread.start()
        self._wait()

    def train(self) -> None:
        """Train one more segment."""
        self.go.release()
        self._wait()

    def close(self) -> None:
        """End the thread."""
        self.stopped = True
        self.go.release()
        self.thread.join()

    def _wait(self) -> None:
        before = self.steps
        self.arrived.acquire()
        if self.failure is not None:
            raise self.failure
        if self.steps - before != self.steps_per_segment:
            raise RuntimeError(f"{self.steps - before} steps, not {self.steps_per_segment}")

    def _progress(self, steps: int, metrics: dict[str, Any]) -> None:
        del metrics
        self.steps = steps
        self.arrived.release()
        self.go.acquire()
        if self.stopped:
            raise _Stop

    def _train(self, configuration: Configuration, devices: int, steps_per_segment: int) -> None:
        try:
            _call(configuration, devices, steps_per_segment, self._progress)
        except _Stop:
            pass
        except BaseException as failure:
            self.failure = failure
            self.arrived.release()


def _call(
    configuration: Configuration, devices: int, steps_per_segment: int, progress: Any
) -> None:
    """Call the training function of Brax with the values of a configuration."""
    ppo.train(
        FromGymnax(configuration.env),
        num_timesteps=SEGMENTS * steps_per_segment,
        # One more than the number of segments, because the first evaluation precedes training.
        num_evals=SEGMENTS + 1,
        run_evals=False,
        progress_fn=progress,
        max_devices_per_host=devices,
        num_envs=configuration.num_envs,
        episode_length=EPISODE_LENGTH,
        unroll_length=configuration.num_steps,
        # The unit is a rollout of `unroll_length` steps, so that all environments make one update.
        batch_size=configuration.num_envs // configuration.minibatches,
        num_minibatches=configuration.minibatches,
        num_updates_per_batch=configuration.epochs,
        learning_rate=configuration.learning_rate,
        entropy_cost=configuration.entropy_coef,
        discounting=configuration.gamma,
        gae_lambda=configuration.gae_lambda,
        clipping_epsilon=configuration.clip_eps,
        vf_loss_coefficient=configuration.value_coef,
        max_grad_norm=configuration.max_grad_norm,
        normalize_observations=False,
        network_factory=functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=configuration.hidden,
            value_hidden_layer_sizes=configuration.hidden,
            activation=getattr(nn, configuration.activation),
            # The same Gaussian as the other contestants: not squashed, with a trained scale.
            distribution_type="normal",
            noise_std_type="log",
        ),
    )


class Program(FixedLength):
    """The program of Brax; another length of segments starts another training run."""

    def __init__(self, configuration: Configuration, devices: int) -> None:
        build = functools.partial(self._start, configuration, devices)
        super().__init__(build, compile_trains=True, devices=devices)
        self.segments: Segments | None = None

    def _start(self, configuration: Configuration, devices: int, updates: int) -> Train:
        if self.segments is not None:
            self.segments.close()
        self.segments = Segments(configuration, devices, updates)
        return self.segments.train


def complete_jax() -> None:
    """Add the function of JAX that Brax calls and newer versions no longer have."""
    vars(jax).setdefault("device_put_replicated", device_put_replicated)


def prepare(configuration: Configuration, options: Namespace) -> Program:
    """The program of Brax, for Pendulum only."""
    complete_jax()
    require(configuration, ("Pendulum-v1",), "supports continuous actions only")
    devices = 1 if options.devices == "one" else all_devices()
    if options.devices != "one" and devices == 1:
        raise Unsupported(ONE_DEVICE)
    if configuration.num_envs % (configuration.minibatches * devices):
        raise Unsupported(
            "minibatches consist of whole rollouts, so num_envs must be a multiple of minibatches "
            "x devices"
        )
    return Program(configuration, devices)
