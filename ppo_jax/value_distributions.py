"""Critics that learn a distribution of the return: its classes or its quantiles.

The mean of each distribution is the value estimate V. Its loss takes the place of the squared error
of a critic that learns V by regression; `losses.value_error` calls it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import shapes


@struct.dataclass
class Histogram:
    """K classes with centres between `low` and `high`: V = Σ_k softmax(z)_k c_k.

    A target y is converted to the probabilities p of the classes, and the loss is the cross-entropy
    −Σ_k p_k log softmax(z)_k. Targets beyond the outer centres are clipped to them.

    w is the distance of two centres.

    two-hot (smoothing = 0): p is divided between the two nearest centres so that Σ_k p_k c_k = y.
    HL-Gauss (smoothing > 0): p_k is the probability of the interval c_k ± w/2 under a Gaussian with
    mean y and standard deviation σ = smoothing · w, divided by that of all intervals.

    Attributes:
        logits: [..., K] logits z.
        low: [] smallest centre.
        high: [] largest centre.
        smoothing: standard deviation of HL-Gauss in units of w, or 0 for two-hot.

    Source: Bellemare et al. 2017, A Distributional Perspective on RL, eq. 7 (two-hot); Imani and
    White 2018, and Farebrother et al. 2024, Stop Regressing, eq. 3-4 (HL-Gauss).
    """

    logits: jax.Array
    low: jax.Array | float
    high: jax.Array | float
    smoothing: float = struct.field(pytree_node=False, default=0.0)

    @property
    def centres(self) -> jax.Array:
        """[K] centres of the classes."""
        return jnp.linspace(self.low, self.high, self.logits.shape[-1])

    def mean(self) -> jax.Array:
        """[...] value estimates V."""
        return jax.nn.softmax(self.logits) @ self.centres

    def probabilities(self, target: jax.Array) -> jax.Array:
        """[..., K] probabilities p of the classes for targets [...]."""
        width = (self.high - self.low) / (self.logits.shape[-1] - 1)
        y = jnp.clip(target, self.low, self.high)[..., None]
        if self.smoothing == 0:
            return jnp.maximum(1.0 - jnp.abs(y - self.centres) / width, 0.0)
        edges = jnp.append(self.centres - 0.5 * width, self.high + 0.5 * width)
        below = jax.scipy.special.erf((edges - y) / (math.sqrt(2.0) * self.smoothing * width))
        mass = jnp.diff(below, axis=-1)
        return mass / (below[..., -1:] - below[..., :1])

    def error(self, target: jax.Array) -> jax.Array:
        """[...] cross-entropies for targets [...]."""
        shapes.same("Histogram.error", value=self.logits[..., 0], target=target)
        return -jnp.sum(self.probabilities(target) * jax.nn.log_softmax(self.logits), axis=-1)


@struct.dataclass
class Quantiles:
    """K quantiles of the return at the levels τ_k = (k + ½) / K: V = (1/K) Σ_k θ_k.

    L = (1/K) Σ_k |τ_k − 1[u_k < 0]| h(u_k),   u_k = y − θ_k,
    h(u) = ½ u² for |u| ≤ κ, and κ (|u| − ½ κ) beyond

    Attributes:
        theta: [..., K] quantiles θ.
        kappa: threshold κ of the Huber loss h, in the unit of the values.

    Source: Dabney et al. 2018, Distributional RL with Quantile Regression, eq. 9-10.
    """

    theta: jax.Array
    kappa: float = struct.field(pytree_node=False, default=1.0)

    def mean(self) -> jax.Array:
        """[...] value estimates V."""
        return jnp.mean(self.theta, axis=-1)

    def error(self, target: jax.Array) -> jax.Array:
        """[...] losses for targets [...]."""
        shapes.same("Quantiles.error", value=self.theta[..., 0], target=target)
        count = self.theta.shape[-1]
        level = (jnp.arange(count) + 0.5) / count
        u = target[..., None] - self.theta
        size = jnp.abs(u)
        huber = jnp.where(size <= self.kappa, 0.5 * u**2, self.kappa * (size - 0.5 * self.kappa))
        return jnp.mean(jnp.abs(level - (u < 0)) * huber, axis=-1)


@struct.dataclass
class Predictive:
    """The output of a critic that also predicts its own features at the next step, and the reward.

    Attributes:
        value: [...] values or distributions of them.
        features: [..., F] outputs φ of the last hidden layer.
        prediction: [..., F + 1] prediction of φ at the next step, and of the reward.

    Source: Voelcker et al. 2025, Relative Entropy Pathwise Policy Optimization, section 3, the
    auxiliary loss; Schwarzer et al. 2021, Data-Efficient RL with Self-Predictive Representations.
    """

    value: Any
    features: jax.Array
    prediction: jax.Array

    def error(self, features: jax.Array, reward: jax.Array) -> jax.Array:
        """[...] mean squared errors of the F + 1 predictions.

        Args:
            features: [..., F] φ of the next step, which receive no gradient.
            reward: [...] rewards.
        """
        shapes.same("Predictive.error", prediction=self.prediction[..., 0], reward=reward)
        goal = jax.lax.stop_gradient(jnp.concatenate([features, reward[..., None]], axis=-1))
        return jnp.mean(jnp.square(self.prediction - goal), axis=-1)


def value_of(value: Any) -> jax.Array:
    """[...] value estimates V of a critic: its outputs, or the means of its distributions."""
    value = value.value if isinstance(value, Predictive) else value
    return value.mean() if isinstance(value, Histogram | Quantiles) else value
