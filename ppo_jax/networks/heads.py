"""Output heads of networks: an action distribution, V(s), or q(s, a)."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ppo_jax.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    JointCategorical,
    MultiCategorical,
)
from ppo_jax.envs import spaces
from ppo_jax.networks.continuous import ContinuousHead
from ppo_jax.networks.features import one_hots
from ppo_jax.networks.layers import HIDDEN_GAIN, head, orthogonal
from ppo_jax.value_distributions import Histogram, Predictive, Quantiles

# The outputs of a critic, each with the smoothing of a histogram's targets; 0.75 is the value of
# Farebrother et al. 2024, Stop Regressing, section 3.1.
VALUE_HEADS = {"scalar": 0.0, "two_hot": 0.0, "hl_gauss": 0.75, "quantile": 0.0}


class Actor(nn.Module):
    """Hidden layers and policy head.

    Attributes:
        body: layers applied to the observation features, or None after a shared torso.
        action_space: action space, which determines the distribution.
        continuous: output for continuous actions.
    """

    body: nn.Module | None
    action_space: spaces.Space
    continuous: ContinuousHead = ContinuousHead()

    @nn.compact
    def __call__(self, x: jax.Array) -> Distribution:
        x = x if self.body is None else self.body(x)
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return Categorical(head(space.n, 0.01)(x))
        if isinstance(space, spaces.MultiDiscrete) and space.joint:
            return JointCategorical(head(math.prod(space.sizes), 0.01)(x), space.sizes)
        if isinstance(space, spaces.MultiDiscrete):
            return MultiCategorical(head(sum(space.sizes), 0.01)(x), space.sizes)
        if isinstance(space, spaces.MultiBinary):
            return Bernoulli(head(space.n, 0.01)(x))
        return self.continuous.distribution(self, x, space)


class ValueHead(NamedTuple):
    """The output of a critic.

    Attributes:
        kind: name in VALUE_HEADS.
        bins: number of classes or quantiles.
        low: [] smallest class of a histogram.
        high: [] largest class of a histogram.
        predicts: whether the output also predicts the features of the next step (`Predictive`).
    """

    kind: str = "scalar"
    bins: int = 51
    low: Any = -10.0
    high: Any = 10.0
    predicts: bool = False

    def outputs(self, x: jax.Array, chosen: jax.Array | None = None) -> Any:
        """[...] values from the last hidden layer [..., F], or distributions of them.

        Called inside a compact module.

        Args:
            x: [..., F] output of the last hidden layer.
            chosen: [..., A] one-hot actions of a Q-function that has one output for each action;
                None for a single output.
        """
        value = self._values(x, chosen)
        if not self.predicts:
            return value
        size = x.shape[-1]
        hidden = nn.Dense(size, kernel_init=orthogonal(HIDDEN_GAIN), name="predictor")(x)
        hidden = nn.silu(nn.LayerNorm(name="predictor_norm")(hidden))
        return Predictive(value, x, nn.Dense(size + 1, name="prediction")(hidden))

    def _values(self, x: jax.Array, chosen: jax.Array | None) -> Any:
        scalar = self.kind == "scalar"
        width = 1 if scalar else self.bins
        # The initial classes are equally probable, and the initial quantiles are 0.
        gain = 1.0 if scalar else 0.01
        if chosen is None:
            outputs = head(width, gain)(x)
        else:
            each = head(width * chosen.shape[-1], gain)(x)
            each = each.reshape(*x.shape[:-1], chosen.shape[-1], width)
            outputs = jnp.sum(each * chosen[..., None], axis=-2)
        if scalar:
            return outputs[..., 0]
        if self.kind == "quantile":
            return Quantiles(outputs)
        return Histogram(outputs, self.low, self.high, VALUE_HEADS[self.kind])


SCALAR = ValueHead()


class Critic(nn.Module):
    """Hidden layers and a value head: V(s).

    Attributes:
        body: layers applied to the observation features, or None after a shared torso.
        value_head: output of the critic.
    """

    body: nn.Module | None
    value_head: ValueHead = SCALAR

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        x = x if self.body is None else self.body(x)
        return self.value_head.outputs(x)


class QCritic(nn.Module):
    """q(s, a), with one output per action if actions are discrete, else with the action as input.

    Attributes:
        convolutions: convolutions over images, applied before the action is appended, or None.
        body: fully connected layers.
        action_space: space of actions as the policy draws them.
        squash: whether the actions are those of a TanhGaussian before squashing. The input of the
            layers is then tanh(a), so that q varies only within the bounds.
        value_head: output of the critic.
    """

    convolutions: nn.Module | None
    body: nn.Module
    action_space: spaces.Space
    squash: bool = False
    value_head: ValueHead = SCALAR

    @nn.compact
    def __call__(self, x: jax.Array, action: jax.Array) -> Any:
        x = x if self.convolutions is None else self.convolutions(x)
        if isinstance(self.action_space, spaces.Discrete):
            chosen = jax.nn.one_hot(action, self.action_space.n, dtype=x.dtype)
            return self.value_head.outputs(self.body(x), chosen)
        action = jnp.tanh(action) if self.squash else action
        features = jnp.concatenate([x, encode(self.action_space, action).astype(x.dtype)], axis=-1)
        return self.value_head.outputs(self.body(features))


def encode(space: spaces.Space, action: jax.Array) -> jax.Array:
    """Convert actions [..., *space.shape] of several choices or of numbers to features [..., F]."""
    if isinstance(space, spaces.MultiDiscrete):
        return one_hots(space.sizes, action)
    return action
