"""The contestant PureJaxRL, whose whole training run is one jitted function.

Its `make_train` is used without changes, except for two replacements: its network, if the
configuration has another one (its continuous file has two layers of 256), and for Pendulum its Brax
wrapper, by a gymnax environment. Observations and rewards are not normalised. By design it stores
the infos of all steps until the end. Many agents use its own `jit(vmap(train))`, with pmap over
several devices. On CPUs their orthogonal matrices are factorised one at a time, because batched
factorisation can hang.
"""

import contextlib
import functools
import hashlib
import importlib.util
import math
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import distrax
import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
from flax.linen.initializers import orthogonal

from benchmarks.throughput.configurations import Configuration
from benchmarks.throughput.contestants import (
    FixedLength,
    Train,
    Unsupported,
    compile_training,
    devices_of,
)

# Brax is imported here if installed, because PureJaxRL's wrappers use it, so that the time counts
# as import time.
with contextlib.suppress(ImportError):
    import brax.envs  # noqa: F401

PACKAGES = ("gymnax", "distrax", "flax", "optax")
# Layers of the network in ppo.py, which is not replaced for them.
OWN_HIDDEN = (64, 64)


class Body(nn.Module):
    """The layers before the heads, applied to the flattened observations of PureJaxRL.

    Attributes:
        configuration: configuration with the layers.
        image: shape of an observation before flattening.
    """

    configuration: Configuration
    image: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        activation = getattr(nn, self.configuration.activation)
        gain = orthogonal(math.sqrt(2))
        if self.configuration.network == "minatar":
            x = x.reshape(*x.shape[:-1], *self.image)
            x = activation(nn.Conv(16, (3, 3), padding="VALID", kernel_init=gain)(x))
            x = x.reshape(*x.shape[:-3], -1)
        for width in self.configuration.hidden:
            x = activation(nn.Dense(width, kernel_init=gain)(x))
        return x


class ActorCritic(nn.Module):
    """A replacement for PureJaxRL's class of this name.

    Attributes:
        action_dim: number of discrete actions, or size of a continuous action.
        activation: ignored, because the configuration contains the activation.
        configuration: configuration with the layers.
        image: shape of an observation before flattening.
        continuous: whether the policy is a Gaussian with a trained scale instead of categorical.
    """

    action_dim: int
    activation: str
    configuration: Configuration
    image: tuple[int, ...]
    continuous: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[distrax.Distribution, jax.Array]:
        actor, critic = (Body(self.configuration, self.image)(x) for _ in range(2))
        outputs = nn.Dense(self.action_dim, kernel_init=orthogonal(0.01))(actor)
        value = nn.Dense(1, kernel_init=orthogonal(1.0))(critic).squeeze(-1)
        if not self.continuous:
            return distrax.Categorical(logits=outputs), value
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return distrax.MultivariateNormalDiag(outputs, jnp.exp(log_std)), value


class FromGymnax:
    """A replacement for BraxGymnaxWrapper: a gymnax environment with actions in [-1, 1].

    PureJaxRL's continuous file passes None as the parameters of the environment, and clips actions
    to [-1, 1], which without scaling would be half of the torque of Pendulum.
    """

    def __init__(self, name: str) -> None:
        self.env, self.params = gymnax.make(name)

    def reset(self, key: jax.Array, params: Any = None) -> Any:
        """Start an episode."""
        return self.env.reset(key, self.params)

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any = None) -> Any:
        """Step the environment, which resets itself at the end of an episode."""
        return self.env.step(key, state, action * self.action_space(None).high, self.params)

    def observation_space(self, params: Any) -> Any:
        """The observation space of the environment; `params` is ignored."""
        return self.env.observation_space(self.params)

    def action_space(self, params: Any) -> Any:
        """The action space of the environment; `params` is ignored."""
        return self.env.action_space(self.params)


def prepare(configuration: Configuration, options: Namespace) -> FixedLength:
    """The program of PureJaxRL, read from the folder `options.purejaxrl`."""
    if options.purejaxrl is None:
        raise Unsupported("requires --purejaxrl PATH, the folder of its ppo.py")
    devices = devices_of(configuration, options.devices)
    module = _load(Path(options.purejaxrl), configuration)
    versions = {"purejaxrl": _fingerprint(module)}
    if configuration.agents > 1 and jax.default_backend() == "cpu":
        module.orthogonal = one_at_a_time
        versions["orthogonal"] = "one at a time"
    build = functools.partial(_build, module, configuration, devices)
    return FixedLength(build, versions=versions, devices=devices)


def one_at_a_time(scale: float) -> Any:
    """An orthogonal initialiser that factorises the matrices of vmapped agents one at a time.

    The CPU kernel of jaxlib 0.10 can hang on few cores when it factorises matrices in batches.
    """
    draw = orthogonal(scale)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))(key)

    return init


def make_importable(folder: Path) -> None:
    """Make the modules of PureJaxRL importable from its folder, which is not a package.

    Its wrappers import navix and brax for environments that are not measured here; empty modules
    replace those that are not installed.
    """
    sys.modules.setdefault("navix", types.ModuleType("navix"))
    if importlib.util.find_spec("brax") is None:
        names = ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training")
        absent = {name: types.ModuleType(name) for name in names}
        absent["brax"].envs = absent["brax.envs"]
        for name in ("EpisodeWrapper", "AutoResetWrapper"):
            setattr(absent["brax.envs.wrappers.training"], name, None)
        sys.modules.update(absent)
    sys.path.insert(0, str(folder.resolve()))


def _load(folder: Path, configuration: Configuration) -> types.ModuleType:
    """The module of PureJaxRL for the kind of actions, with the network of the configuration."""
    make_importable(folder)
    env, params = gymnax.make(configuration.env)
    continuous = not hasattr(env.action_space(params), "n")
    module = importlib.import_module("ppo_continuous_action" if continuous else "ppo")
    if continuous:
        module.BraxGymnaxWrapper = FromGymnax
    if continuous or configuration.network != "mlp" or configuration.hidden != OWN_HIDDEN:
        module.ActorCritic = functools.partial(
            ActorCritic,
            configuration=configuration,
            image=env.observation_space(params).shape,
            continuous=continuous,
        )
    return module


def _build(
    module: types.ModuleType, configuration: Configuration, devices: int, updates: int
) -> Train:
    total = updates * configuration.num_envs * configuration.num_steps
    train = module.make_train(
        {
            "ENV_NAME": configuration.env,
            "NUM_ENVS": configuration.num_envs,
            "NUM_STEPS": configuration.num_steps,
            "TOTAL_TIMESTEPS": total,
            "UPDATE_EPOCHS": configuration.epochs,
            "NUM_MINIBATCHES": configuration.minibatches,
            "LR": configuration.learning_rate,
            "ANNEAL_LR": False,
            "GAMMA": configuration.gamma,
            "GAE_LAMBDA": configuration.gae_lambda,
            "CLIP_EPS": configuration.clip_eps,
            "ENT_COEF": configuration.entropy_coef,
            "VF_COEF": configuration.value_coef,
            "MAX_GRAD_NORM": configuration.max_grad_norm,
            "ACTIVATION": configuration.activation,
            "NORMALIZE_ENV": False,
            "DEBUG": False,
        }
    )
    return compile_training(train, configuration.agents, devices)


def _fingerprint(module: types.ModuleType) -> str:
    """Name and digest of the file of PureJaxRL, which has no version numbers."""
    path = Path(str(module.__file__))
    return f"{path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
