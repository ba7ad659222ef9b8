"""Importance weights and Kullback-Leibler divergences, estimated from samples.

q is the distribution that was sampled and p the one that is compared with it. Both are given by
the log-probabilities of the samples.
"""

import jax
import jax.numpy as jnp

from ppo_jax import shapes

# A larger log-ratio overflows float32 after exp, and 0 · ∞ in a gradient is NaN.
MAX_LOG_RATIO = 80.0


def importance_ratio(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """The importance weight of a sample of q for expectations under p.

    ρ = p(x) / q(x),   E_q[ρ] = 1

    Args:
        log_p: [...] log p(x).
        log_q: [...] log q(x).

    Returns:
        [...] importance ratio ρ, at most e^80.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.
    """
    shapes.same("importance_ratio", log_p=log_p, log_q=log_q)
    return jnp.exp(jnp.minimum(log_p - log_q, MAX_LOG_RATIO))


def importance_weighted_mean(
    f: jax.Array, log_p: jax.Array, log_q: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """An expectation under p from n samples of q, and the variance of the estimate.

    E_p[f] = E_q[ρ f] ≈ 1/n Σ ρ_i f_i,   ρ = p(x) / q(x)
    Var = 1/n (E_p[ρ f²] − E_p[f]²),   E_p[ρ f²] = E_q[ρ² f²]

    If p = q the variance is Var_p[f] / n. It grows with the distance between p and q.

    Args:
        f: [n, ...] values f(x_i) of independent samples x_i ~ q.
        log_p: [n, ...] log p(x_i), or [n, 1, ...] if all components of f share one sample.
        log_q: log q(x_i), of the same shape as log_p.

    Returns:
        (mean [...], variance of the mean [...], estimated from the same samples with n − 1).

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Owen 2013, Monte Carlo theory, methods and examples, section 9.1.
    """
    shape = shapes.same("importance_weighted_mean", log_p=log_p, log_q=log_q)
    if shape != f.shape[:1] + (1,) * (f.ndim - 1):
        shapes.same("importance_weighted_mean", f=f, log_p=log_p, log_q=log_q)
    weighted = importance_ratio(log_p, log_q) * f
    return jnp.mean(weighted, axis=0), jnp.var(weighted, axis=0, ddof=1) / weighted.shape[0]


def k1(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Estimate KL(q ‖ p) from samples of q; unbiased, of either sign.

    k1 = log q(x) − log p(x)

    Args:
        log_p: [...] log p(x).
        log_q: [...] log q(x), x ~ q.

    Returns:
        [...] estimate for each sample, in nats.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Schulman 2020, Approximating KL Divergence (joschu.net/blog/kl-approx.html).
    """
    shapes.same("k1", log_p=log_p, log_q=log_q)
    return log_q - log_p


def k2(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Estimate KL(q ‖ p) from samples of q; biased, never negative, of small variance.

    k2 = ½ (log q(x) − log p(x))²

    Args:
        log_p: [...] log p(x).
        log_q: [...] log q(x), x ~ q.

    Returns:
        [...] estimate for each sample, in nats.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Schulman 2020.
    """
    shapes.same("k2", log_p=log_p, log_q=log_q)
    return 0.5 * jnp.square(log_q - log_p)


def k3(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Estimate KL(q ‖ p) from samples of q; unbiased and never negative.

    k3 = (ρ − 1) − log ρ,   ρ = p(x) / q(x)

    This is k1 with the control variate ρ − 1, whose expectation is 0.

    Args:
        log_p: [...] log p(x).
        log_q: [...] log q(x), x ~ q.

    Returns:
        [...] estimate for each sample, in nats.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Schulman 2020.
    """
    shapes.same("k3", log_p=log_p, log_q=log_q)
    log_ratio = log_p - log_q
    return jnp.expm1(jnp.minimum(log_ratio, MAX_LOG_RATIO)) - log_ratio
