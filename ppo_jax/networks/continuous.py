"""The outputs of an actor for continuous actions."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config.standard import ACTION_DISTRIBUTIONS as ACTION_DISTRIBUTIONS
from ppo_jax.continuous import GSDE, Beta
from ppo_jax.distributions import DiagGaussian, Distribution, TanhGaussian
from ppo_jax.envs import spaces
from ppo_jax.networks.layers import head

# A standard deviation that depends on the state is at most this factor, as a logarithm, above or
# below the initial one.
LOG_STD_RANGE = 5.0
# A constant feature of gSDE, so that the standard deviation is positive where all others are 0.
FLOOR = 1e-3
# The number of steps for which gSDE keeps its noise matrix, if it is not configured.
NOISE_STEPS = 4


class ContinuousHead(NamedTuple):
    """The distribution of continuous actions, with its parameters as outputs of a network.

    Attributes:
        kind: name in ACTION_DISTRIBUTIONS. gaussian: log σ is a parameter that does not depend on
            the state. state_gaussian: log σ is an output. beta: α and β are outputs. gsde: the
            noise is a function of the last hidden layer.
        squash: whether a Gaussian is squashed by tanh rather than clipped; not for beta.
        log_std_init: initial logarithm of the standard deviation, log σ; not for beta.
        map_actions: whether a Gaussian without squashing is moved by `spaces.action_frame`.
        noise_steps: number of steps for which gsde keeps its noise matrix; None for NOISE_STEPS.
    """

    kind: str = "gaussian"
    squash: bool = False
    log_std_init: Any = 0.0
    map_actions: bool = False
    noise_steps: int | None = None

    def distribution(self, module: nn.Module, x: jax.Array, space: spaces.Box) -> Distribution:
        """The distribution for features x [..., F]. Called inside a compact method of `module`."""
        size = math.prod(space.shape)
        if self.kind == "beta":
            return _beta(x, space)
        mean = head(size, 0.01)(x)
        if self.kind == "state_gaussian":
            log_std = self._log_std_of_state(x, size)
        elif self.kind == "gsde":
            features, scale = self._noise_of_state(module, x, size)
            squares = jnp.square(features), jnp.square(scale)
            log_std = 0.5 * jnp.log(jnp.matmul(*squares, precision="highest"))
        else:
            log_std = module.param("log_std", nn.initializers.constant(self.log_std_init), (size,))
            log_std = jnp.broadcast_to(log_std, mean.shape)
        gaussian = self._gaussian(mean, log_std, space)
        if self.kind != "gsde":
            return gaussian
        scale = jnp.broadcast_to(scale, (*features.shape[:-1], *scale.shape))
        return GSDE(gaussian, features, scale, self.noise_steps or NOISE_STEPS)

    def init_noise(self, space: spaces.Space, width: int) -> Any:
        """The function num_envs -> noise of a Policy (`Policy.init_noise`).

        Args:
            space: action space.
            width: number F of units of the last hidden layer.
        """
        if self.kind != "gsde" or not isinstance(space, spaces.Box):
            return lambda num_envs: ()
        return lambda num_envs: jnp.zeros((num_envs, width + 1, math.prod(space.shape)))

    def _gaussian(
        self, mean: jax.Array, log_std: jax.Array, space: spaces.Box
    ) -> DiagGaussian | TanhGaussian:
        frame = spaces.action_frame(space) if self.map_actions and not self.squash else None
        rows = _rows(mean, space.low, space.high, *(frame or ()))
        return (TanhGaussian if self.squash else DiagGaussian)(mean, log_std, *rows)

    def _log_std_of_state(self, x: jax.Array, size: int) -> jax.Array:
        """[..., D] log σ(s) = log_std_init + r tanh(y(s) / r), where y is a linear output and r is
        LOG_STD_RANGE."""
        outputs = head(size, 0.01, name="log_std")(x)
        return self.log_std_init + LOG_STD_RANGE * jnp.tanh(outputs / LOG_STD_RANGE)

    def _noise_of_state(
        self, module: nn.Module, x: jax.Array, size: int
    ) -> tuple[jax.Array, jax.Array]:
        """(features z [..., F + 1], standard deviations σ [F + 1, D]) of gSDE.

        The initial σ is exp(log_std_init) / √F: the initial standard deviation of an action is
        exp(log_std_init) times the root mean square of the features, whatever their number.
        """
        width = x.shape[-1]
        first = self.log_std_init - 0.5 * math.log(width)
        log_std = module.param("log_std", nn.initializers.constant(first), (width, size))
        # The standard deviation does not shape the features, which the mean uses as well.
        features = jax.lax.stop_gradient(x)
        floor = jnp.zeros_like(x[..., :1]) + FLOOR
        scale = jnp.concatenate([jnp.exp(log_std), jnp.ones((1, size), log_std.dtype)])
        return jnp.concatenate([features, floor], axis=-1), scale


def _beta(x: jax.Array, space: spaces.Box) -> Beta:
    """α, β = 1 + softplus(y), so that the density has a single maximum."""
    outputs = 1.0 + jax.nn.softplus(head(2 * math.prod(space.shape), 0.01)(x))
    alpha, beta = jnp.split(outputs, 2, axis=-1)
    return Beta(alpha, beta, *_rows(alpha, space.low, space.high))


def _rows(like: jax.Array, *bounds: np.ndarray) -> list[jax.Array]:
    """Arrays of an action space's shape as rows [..., D] of the shape of `like`."""
    flat = (jnp.asarray(b.reshape(-1), like.dtype) for b in bounds)
    return [jnp.broadcast_to(b, like.shape) for b in flat]
