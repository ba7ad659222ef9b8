"""Further distributions of continuous actions: Beta, and state-dependent exploration (gSDE)."""

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import shapes
from ppo_jax.distributions import LOG_SQRT_2PI, DiagGaussian, TanhGaussian

# From this number on, Stirling's series with three terms is exact to float32.
STIRLING = 8.0
# Number of proposals for each Gamma variable of a sample.
PROPOSALS = 6
# A number that is added to α − 1 and β − 1, so that the mode of the uniform distribution is 1/2.
TINY = 1e-6


@struct.dataclass
class Beta:
    """Independent Beta distributions scaled to bounds: a = low + (high − low) x, x ~ Beta(α, β).

    The action that is stored and scored is x, which is between 0 and 1; `to_env` scales it.
    log_prob is the density of the scaled action a, so that it integrates to 1 over the bounds:

    log π(a) = Σ_i (α_i − 1) log x_i + (β_i − 1) log(1 − x_i) − log B(α_i, β_i)
               − log(high_i − low_i)

    Unlike a clipped Gaussian it has no probability outside the bounds, and thus no bias from
    clipping; unlike a squashed Gaussian it has a closed entropy.

    Attributes:
        alpha: [..., D] first parameters α, at least 1, so that the density has a single maximum.
        beta: [..., D] second parameters β, at least 1.
        low, high: [D] or [..., D] finite bounds of the environment's action space.

    Source: Chou, Maturana and Scherer 2017, Improving Stochastic Policy Gradients in Continuous
    Control with Deep Reinforcement Learning using the Beta Distribution, section 3.
    """

    alpha: jax.Array
    beta: jax.Array
    low: jax.Array
    high: jax.Array

    def noise(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """[*shape, ..., D, 2, K, 2] normal and uniform numbers of K proposals for two variables."""
        normal_key, uniform_key = jax.random.split(key)
        size = (*shape, *self.alpha.shape, 2, PROPOSALS)
        normal = jax.random.normal(normal_key, size, self.alpha.dtype)
        uniform = jax.random.uniform(uniform_key, size, self.alpha.dtype)
        return jnp.stack([normal, uniform], axis=-1)

    def sample_from(self, noise: jax.Array) -> jax.Array:
        """x = g / (g + h) with g ~ Gamma(α), h ~ Gamma(β)."""
        gamma = _gamma(jnp.stack([self.alpha, self.beta], axis=-1), noise)
        drawn = gamma[..., 0] / jnp.sum(gamma, axis=-1)
        # The logarithms of x and of 1 − x must be finite.
        least = float(jnp.finfo(drawn.dtype).epsneg)
        return jnp.clip(drawn, least, 1.0 - least)

    def sample(self, key: jax.Array) -> jax.Array:
        return self.sample_from(self.noise(key))

    def log_prob(self, action: jax.Array) -> jax.Array:
        if jnp.ndim(action):
            shapes.leading("Beta.log_prob", "action", action, self.alpha.shape)
        log_x, log_rest = jnp.log(action), jnp.log1p(-action)
        log_mean, log_other = self._log_means()
        # Differences to the logarithm of the mean are small where α and β are large, so that the
        # rounding of the two large terms of the plain formula does not occur.
        unit = self.alpha * (log_x - log_mean) + self.beta * (log_rest - log_other)
        unit = unit - log_x - log_rest - self._log_rest_of_beta_function()
        return jnp.sum(unit - self._log_width(), axis=-1)

    def entropy(self) -> jax.Array:
        first, second = self._expected_logs()
        unit = _log_beta_function(self) - (self.alpha - 1) * first - (self.beta - 1) * second
        return jnp.sum(unit + self._log_width(), axis=-1)

    def kl(self, other: "Beta") -> jax.Array:
        """The divergence of the distributions of x: the scaling to the bounds preserves it."""
        shapes.same("Beta.kl", alpha=self.alpha, other=other.alpha)
        first, second = self._expected_logs()
        change = (self.alpha - other.alpha) * first + (self.beta - other.beta) * second
        return jnp.sum(_log_beta_function(other) - _log_beta_function(self) + change, axis=-1)

    def mode(self) -> jax.Array:
        """(α − 1) / (α + β − 2), which is 1/2 for the uniform distribution α = β = 1."""
        first, second = self.alpha - 1.0 + TINY, self.beta - 1.0 + TINY
        return first / (first + second)

    def to_env(self, action: jax.Array) -> jax.Array:
        return jnp.clip(self.low + (self.high - self.low) * action, self.low, self.high)

    def _log_means(self) -> tuple[jax.Array, jax.Array]:
        """(log of the mean of x, log of the mean of 1 − x)."""
        total = self.alpha + self.beta
        return jnp.log(self.alpha / total), jnp.log(self.beta / total)

    def _expected_logs(self) -> tuple[jax.Array, jax.Array]:
        """(E[log x], E[log(1 − x)])."""
        both = jax.lax.digamma(self.alpha + self.beta)
        return jax.lax.digamma(self.alpha) - both, jax.lax.digamma(self.beta) - both

    def _log_rest_of_beta_function(self) -> jax.Array:
        """log B(α, β) − α log(α / (α + β)) − β log(β / (α + β))."""
        total = self.alpha + self.beta
        rest = _log_gamma_rest(self.alpha) + _log_gamma_rest(self.beta) - _log_gamma_rest(total)
        return rest + LOG_SQRT_2PI - 0.5 * (sum(self._log_means()) + jnp.log(total))

    def _log_width(self) -> jax.Array:
        return jnp.log(jnp.asarray(self.high) - jnp.asarray(self.low))


def _gamma(shape: jax.Array, noise: jax.Array) -> jax.Array:
    """Gamma variables [...] by rejection: the first accepted one of K proposals.

    v = (1 + z / √(9 d))³ with d = shape − 1/3 is accepted if log u < z²/2 + d (1 − v + log v), and
    d v is then a Gamma variable. At least 95 % of the proposals are accepted, so that all K = 6 are
    rejected with a probability below 2e-8; the first one is then taken. Unlike a loop with an
    unknown number of steps, this is one elementwise operation for all environments.

    Args:
        shape: [...] shape parameters, at least 1.
        noise: [..., K, 2] normal numbers z and uniform numbers u.

    Source: Marsaglia & Tsang 2000, A Simple Method for Generating Gamma Variables, section 4.
    """
    normal, uniform, d = noise[..., 0], noise[..., 1], shape[..., None] - 1 / 3
    v = (1.0 + normal / jnp.sqrt(9.0 * d)) ** 3
    positive = jnp.where(v > 0, v, 1.0)
    bound = 0.5 * jnp.square(normal) + d * (1.0 - positive + jnp.log(positive))
    accepted = (v > 0) & (jnp.log(uniform) < bound)
    first = jnp.argmax(accepted, axis=-1, keepdims=True)
    return jnp.take_along_axis(d * positive, first, axis=-1)[..., 0]


def _log_beta_function(dist: Beta) -> jax.Array:
    """log B(α, β) = log Γ(α) + log Γ(β) − log Γ(α + β), without their cancellation."""
    log_mean, log_other = dist._log_means()
    return dist.alpha * log_mean + dist.beta * log_other + dist._log_rest_of_beta_function()


def _log_gamma_rest(x: jax.Array) -> jax.Array:
    """log Γ(x) − ((x − 1/2) log x − x + 1/2 log 2π), for x > 0."""
    small, inverse = jnp.minimum(x, STIRLING), 1.0 / jnp.maximum(x, STIRLING)
    direct = jax.lax.lgamma(small) - ((small - 0.5) * jnp.log(small) - small + LOG_SQRT_2PI)
    square = jnp.square(inverse)
    series = inverse * (1 / 12 - square * (1 / 360 - square / 1260))
    return jnp.where(x < STIRLING, direct, series)


@struct.dataclass
class GSDE:
    """Generalised state-dependent exploration: a Gaussian whose noise is a function of the state.

    u_j = μ_j(s) + Σ_i z_i(s) σ_ij ε_ij,   ε_ij ~ N(0, 1)

    The matrix ε is kept for several steps, in which the noise is then a smooth function of the
    state rather than a new number in each step. Given the state alone, u is Gaussian with

    σ̂_j(s)² = Σ_i z_i(s)² σ_ij²

    log_prob, entropy and kl are those of this Gaussian, `base`. Losses thus treat the steps as
    independent given their states, as the paper does.

    Attributes:
        base: distribution of the action given the state, with log_std = log σ̂: a DiagGaussian, or a
            TanhGaussian if the action is squashed.
        features: [..., F] features z of the state.
        scale: [..., F, D] standard deviations σ of the elements of the noise matrix.
        noise_steps: number of steps for which a rollout keeps the matrix ε, static.

    Source: Raffin, Kober and Stulp 2021, Smooth Exploration for Robotic Reinforcement Learning,
    section 3, with σ of each element and the gradient of log σ̂ stopped at z, as in the
    implementation of Stable-Baselines3.
    """

    base: DiagGaussian | TanhGaussian
    features: jax.Array
    scale: jax.Array
    noise_steps: int = struct.field(pytree_node=False)

    def noise(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Matrices ε, [*shape, ..., F, D], one for each sample."""
        return jax.random.normal(key, (*shape, *self.scale.shape), self.scale.dtype)

    def sample_from(self, noise: jax.Array) -> jax.Array:
        deviation = jnp.sum(self.features[..., None] * self.scale * noise, axis=-2)
        return self.base.sample_from(deviation * jnp.exp(-self.base.log_std))

    def sample(self, key: jax.Array) -> jax.Array:
        return self.sample_from(self.noise(key))

    def log_prob(self, action: jax.Array) -> jax.Array:
        return self.base.log_prob(action)

    def entropy(self) -> jax.Array:
        return self.base.entropy()

    def kl(self, other: "GSDE") -> jax.Array:
        return self.base.kl(other.base)  # type: ignore[arg-type]

    def mode(self) -> jax.Array:
        return self.base.mode()

    def to_env(self, action: jax.Array) -> jax.Array:
        return self.base.to_env(action)
