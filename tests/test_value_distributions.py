"""Critics that learn a distribution: hand-computed targets, losses and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.value_distributions import Histogram, Quantiles


def test_two_hot_divides_the_target_between_its_neighbours():
    # Centres −2, 0, 2, 4. The target 0.5 is a quarter of the way from 0 to 2.
    histogram = Histogram(jnp.zeros(4), -2.0, 4.0)
    np.testing.assert_allclose(histogram.centres, [-2, 0, 2, 4], atol=1e-6)
    np.testing.assert_allclose(
        histogram.probabilities(jnp.asarray(0.5)), [0, 0.75, 0.25, 0], atol=1e-6
    )
    np.testing.assert_allclose(histogram.probabilities(jnp.asarray(9.0)), [0, 0, 0, 1])
    np.testing.assert_allclose(histogram.probabilities(jnp.asarray(-9.0)), [1, 0, 0, 0])


def test_the_mean_of_a_two_hot_target_is_the_target():
    target = jnp.linspace(-2.0, 4.0, 23)
    histogram = Histogram(jnp.zeros((23, 4)), -2.0, 4.0)
    np.testing.assert_allclose(
        histogram.probabilities(target) @ histogram.centres, target, atol=1e-6
    )


def test_hl_gauss_integrates_the_gaussian_over_each_class():
    # Centres −1, 0, 1; edges −1.5, −0.5, 0.5, 1.5; a standard Gaussian around 0.
    histogram = Histogram(jnp.zeros(3), -1.0, 1.0, smoothing=1.0)

    def cdf(x: float) -> float:
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    inner, outer = cdf(0.5) - cdf(-0.5), cdf(1.5) - cdf(0.5)
    expected = np.array([outer, inner, outer]) / (inner + 2 * outer)
    np.testing.assert_allclose(histogram.probabilities(jnp.asarray(0.0)), expected, rtol=1e-5)


def test_the_loss_of_a_histogram_is_the_cross_entropy():
    # softmax(log 1, log 3) = (1/4, 3/4); the target 0.5 is (1/2, 1/2) of the centres 0 and 1.
    histogram = Histogram(jnp.log(jnp.asarray([1.0, 3.0])), 0.0, 1.0)
    assert float(histogram.mean()) == pytest.approx(0.75)
    expected = -0.5 * math.log(0.25) - 0.5 * math.log(0.75)
    assert float(histogram.error(jnp.asarray(0.5))) == pytest.approx(expected)
    gradient = jax.grad(lambda z: Histogram(z, 0.0, 1.0).error(jnp.asarray(0.5)))(histogram.logits)
    np.testing.assert_allclose(gradient, [-0.25, 0.25], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.75])
def test_a_histogram_learns_the_mean_of_its_targets(smoothing):
    targets = jnp.asarray([-1.0, 0.0, 2.5, 3.0])

    def loss(logits: jax.Array) -> jax.Array:
        return jnp.mean(
            Histogram(jnp.broadcast_to(logits, (4, 41)), -5.0, 5.0, smoothing).error(targets)
        )

    # The cross-entropy has its minimum at the mean probabilities of the targets.
    shared = Histogram(jnp.zeros((4, 41)), -5.0, 5.0, smoothing).probabilities(targets).mean(axis=0)
    best = jnp.log(jnp.maximum(shared, 1e-12))
    np.testing.assert_allclose(jax.grad(loss)(best), 0.0, atol=1e-6)
    assert float(Histogram(best, -5.0, 5.0, smoothing).mean()) == pytest.approx(1.125, abs=1e-3)


def test_the_loss_of_quantiles_by_hand():
    # τ = (1/4, 3/4), θ = (0, 2), y = 0.5: u = (0.5, −1.5), h = (0.125, 1.0),
    # weights (0.25, |0.75 − 1| = 0.25), so L = (0.25 · 0.125 + 0.25 · 1.0) / 2.
    quantiles = Quantiles(jnp.asarray([0.0, 2.0]))
    assert float(quantiles.mean()) == 1.0
    assert float(quantiles.error(jnp.asarray(0.5))) == pytest.approx(0.140625)
    # κ = 2: h(−1.5) = 1.125.
    wide = Quantiles(jnp.asarray([0.0, 2.0]), kappa=2.0)
    assert float(wide.error(jnp.asarray(0.5))) == pytest.approx((0.03125 + 0.28125) / 2)


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"Histogram\.error"):
        Histogram(jnp.zeros((3, 5)), 0.0, 1.0).error(jnp.zeros(4))
    with pytest.raises(ValueError, match=r"Quantiles\.error"):
        Quantiles(jnp.zeros((3, 5))).error(jnp.zeros(4))
