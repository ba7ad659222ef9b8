"""The contestant Rejax, whose whole training run is one jitted function; evaluation is off.

Some properties cannot be changed: separate optimisers and gradients of actor and critic,
elementwise instead of global clipping of gradients, and an epsilon of Adam of 1e-8. Many agents are
vmapped, with pmap over several devices.
"""

import dataclasses
import functools
from argparse import Namespace

import flax.linen as nn
import jax
import rejax
from rejax.networks import DiscretePolicy

from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.contestants import FixedLength, Train, compile_training, devices_of

PACKAGES = ("rejax", "gymnax", "distrax", "flax", "optax")


class Body(nn.Module):
    """One convolution and the hidden layers, applied to images.

    Attributes:
        configuration: configuration with the layers.
    """

    configuration: Configuration

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        activation = getattr(nn, self.configuration.activation)
        x = activation(nn.Conv(16, (3, 3), padding="VALID")(x))
        x = x.reshape(x.shape[0], -1)
        for width in self.configuration.hidden:
            x = activation(nn.Dense(width)(x))
        return x


class ConvolutionalPolicy(DiscretePolicy):
    """Rejax's categorical policy with a convolution.

    Attributes:
        configuration: configuration with the layers.
    """

    configuration: Configuration | None = None

    def setup(self) -> None:
        """Define the modules that the inherited methods use."""
        self.features = Body(self.configuration)
        self.action_logits = nn.Dense(self.action_dim)


class ConvolutionalValue(nn.Module):
    """A critic with a convolution.

    Attributes:
        configuration: configuration with the layers.
    """

    configuration: Configuration

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        return nn.Dense(1)(Body(self.configuration)(obs)).squeeze(1)


def prepare(configuration: Configuration, options: Namespace) -> FixedLength:
    """The program of Rejax, with environments of gymnax."""
    devices = devices_of(configuration, options.devices)
    return FixedLength(functools.partial(_build, configuration, devices), devices=devices)


def _build(configuration: Configuration, devices: int, updates: int) -> Train:
    total = updates * configuration.num_envs * configuration.num_steps
    algorithm = rejax.get_algo("ppo").create(
        env=configuration.env,
        agent_kwargs={
            "hidden_layer_sizes": configuration.hidden,
            "activation": configuration.activation,
        },
        num_envs=configuration.num_envs,
        num_steps=configuration.num_steps,
        num_epochs=configuration.epochs,
        num_minibatches=configuration.minibatches,
        total_timesteps=total,
        # One evaluation after the last update, which evaluates nothing.
        eval_freq=total,
        skip_initial_evaluation=True,
        learning_rate=configuration.learning_rate,
        gamma=configuration.gamma,
        gae_lambda=configuration.gae_lambda,
        clip_eps=configuration.clip_eps,
        ent_coef=configuration.entropy_coef,
        vf_coef=configuration.value_coef,
        max_grad_norm=configuration.max_grad_norm,
        normalize_observations=False,
        normalize_rewards=False,
    )
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: ())
    if configuration.network == "minatar":
        algorithm = _with_convolutions(algorithm, configuration)
    return compile_training(algorithm.train, configuration.agents, devices)


def _with_convolutions(algorithm: rejax.PPO, configuration: Configuration) -> rejax.PPO:
    """The algorithm with convolutional networks, set as fields, since no keyword selects them."""
    own = {f.name: getattr(algorithm.actor, f.name) for f in dataclasses.fields(DiscretePolicy)}
    own = {name: own[name] for name in ("action_dim", "hidden_layer_sizes", "activation")}
    return algorithm.replace(
        actor=ConvolutionalPolicy(**own, configuration=configuration),
        critic=ConvolutionalValue(configuration),
    )
