"""Importance weights and KL estimators: agreement with their definitions, computed by summation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import divergences, losses
from ppo_jax.distributions import Categorical, DiagGaussian

P, Q = Categorical(jnp.array([0.5, -0.2, 0.1])), Categorical(jnp.array([0.0, 0.3, -0.4]))
ACTIONS = jnp.arange(3)
LOG_P, LOG_Q = P.log_prob(ACTIONS), Q.log_prob(ACTIONS)
p, q = np.exp(LOG_P), np.exp(LOG_Q)
F = jnp.array([1.0, -2.0, 5.0])


def test_the_ratio_has_mean_one_under_q():
    ratio = divergences.importance_ratio(LOG_P, LOG_Q)
    np.testing.assert_allclose(ratio, p / q, rtol=1e-6)
    np.testing.assert_allclose(np.sum(q * ratio), 1.0, rtol=1e-6)


def test_the_ratio_stays_finite():
    log_p = jnp.array([0.0, 1000.0])
    ratio, slope = jax.vmap(jax.value_and_grad(divergences.importance_ratio))(log_p, -log_p)
    assert np.isfinite(ratio).all() and np.isfinite(slope).all()


def test_importance_weighted_mean_and_its_variance():
    """20,000 estimates from 50 samples each: mean, standard deviation and predicted standard
    error."""
    actions = jax.vmap(Q.sample)(jax.random.split(jax.random.key(0), 50 * 20_000))
    actions = actions.reshape(50, 20_000)
    mean, variance = divergences.importance_weighted_mean(
        F[actions], LOG_P[actions], LOG_Q[actions]
    )
    expected = np.sum(p * F)
    # Var = 1/n (E_p[ρ f²] − E_p[f]²), by summation over the three actions.
    formula = (np.sum(p * (p / q) * F**2) - expected**2) / 50
    np.testing.assert_allclose(mean.mean(), expected, atol=4 * np.sqrt(formula / 20_000))
    np.testing.assert_allclose(mean.var(), formula, rtol=0.03)
    np.testing.assert_allclose(variance.mean(), formula, rtol=0.03)


def test_without_a_change_of_distribution_it_is_the_plain_mean():
    f = jax.random.normal(jax.random.key(0), (100, 2))
    log_p = jnp.zeros((100, 1))
    mean, variance = divergences.importance_weighted_mean(f, log_p, log_p)
    np.testing.assert_allclose(mean, f.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, f.var(axis=0, ddof=1) / 100, rtol=1e-5)


def test_the_further_apart_the_larger_the_variance():
    """Samples of N(0, 1) for N(μ, 1): the variance of the weights is exp(μ²) − 1."""
    x = jax.random.normal(jax.random.key(0), (400_000, 1))
    standard = DiagGaussian(jnp.zeros((400_000, 1)), jnp.zeros(1))
    for shift in (0.25, 0.5, 1.0):
        moved = DiagGaussian(jnp.full((400_000, 1), shift), jnp.zeros(1))
        _, variance = divergences.importance_weighted_mean(
            jnp.ones(400_000), moved.log_prob(x), standard.log_prob(x)
        )
        np.testing.assert_allclose(400_000 * variance, np.exp(shift**2) - 1, rtol=0.1)


@pytest.mark.parametrize(("name", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_kl_estimators_by_summation(name, unbiased):
    """The exact mean under q: that of k1 and k3 is KL(q ‖ p), and that of k2 is close to it."""
    kl = float(Q.kl(P))
    estimate = getattr(divergences, name)(LOG_P, LOG_Q)
    found = np.sum(q * estimate)
    np.testing.assert_allclose(found, kl, rtol=1e-5 if unbiased else 0.2)
    assert unbiased or abs(found - kl) > 1e-3
    assert name == "k1" or (estimate >= 0).all()


def test_kl_estimators_literally():
    log_p, log_q = jnp.log(jnp.array([0.2, 0.6])), jnp.log(jnp.array([0.4, 0.3]))
    np.testing.assert_allclose(divergences.k1(log_p, log_q), [np.log(2), -np.log(2)], rtol=1e-5)
    np.testing.assert_allclose(divergences.k2(log_p, log_q), [0.5 * np.log(2) ** 2] * 2, rtol=1e-5)
    np.testing.assert_allclose(
        divergences.k3(log_p, log_q), [np.log(2) - 0.5, 1 - np.log(2)], rtol=1e-5
    )


def test_k3_has_the_least_variance_of_the_unbiased():
    spread = {
        name: np.sum(q * np.square(getattr(divergences, name)(LOG_P, LOG_Q)))
        for name in ("k1", "k2", "k3")
    }
    assert spread["k3"] < 0.2 * spread["k1"]
    assert spread["k2"] < 0.2 * spread["k1"]


def test_near_equality_all_are_half_the_chi_square():
    """To second order, KL is ½ Σ (p − q)² / q, and so is the mean of each estimator."""
    near = Categorical(Q.logits + 1e-2 * jnp.array([1.0, -1.0, 0.5]))
    log_p = near.log_prob(ACTIONS)
    half_chi_square = 0.5 * np.sum((np.exp(log_p) - q) ** 2 / q)
    for estimator in (divergences.k2, divergences.k3):
        np.testing.assert_allclose(np.sum(q * estimator(log_p, LOG_Q)), half_chi_square, rtol=0.02)


def test_approx_kl_is_k3_of_the_old_policy():
    np.testing.assert_array_equal(losses.approx_kl(LOG_P, LOG_Q), divergences.k3(LOG_P, LOG_Q))


@pytest.mark.parametrize("size", [1, 3])
def test_full_distribution_kl_agrees_with_its_estimate(size):
    """dist.kl is the expectation that k3 estimates."""
    keys = jax.random.split(jax.random.key(0), 3)
    old = DiagGaussian(jax.random.normal(keys[0], (size,)), jnp.full(size, -0.3))
    new = DiagGaussian(old.mean + 0.2, jnp.full(size, -0.1))
    x = old.sample_from(jax.random.normal(keys[2], (200_000, size)))
    found = divergences.k3(new.log_prob(x), old.log_prob(x)).mean()
    np.testing.assert_allclose(found, old.kl(new), rtol=0.03)
