"""Element-wise losses and reductions: literal values, identities, and independence of padding."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import losses
from ppo_jax.distributions import Categorical
from ppo_jax.types import Batch
from reference import Golden

GOLDEN = Golden("02_ppo_loss")


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "moves"),
    [
        (1.0, 2.0, -2.0, True),  # inside the interval
        (1.0, -2.0, 2.0, True),
        (0.5, 2.0, -1.0, True),  # below, A > 0: to be made more likely again
        (0.5, -2.0, 1.6, False),  # below, A < 0: no further change
        (1.5, 2.0, -2.4, False),  # above, A > 0: no further change
        (1.5, -2.0, 3.0, True),  # above, A < 0: to be made less likely again
    ],
)
def test_the_six_rows_of_the_clip_table(ratio, advantage, value, moves):
    log_prob = jnp.log(jnp.asarray(ratio))
    loss, slope = jax.value_and_grad(losses.clipped_surrogate)(log_prob, 0.0, advantage, 0.2)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    np.testing.assert_allclose(slope, -ratio * advantage if moves else 0.0, rtol=1e-6)


def test_gradients_agree_where_the_policies_are_equal():
    log_prob, advantage = jnp.array([-0.3, -1.2, -2.0]), jnp.array([1.0, -2.0, 0.5])

    def gradient(loss, *more):
        return jax.grad(lambda lp: jnp.sum(loss(lp, *more)))(log_prob)

    expected = gradient(losses.policy_gradient, advantage)
    np.testing.assert_allclose(gradient(losses.surrogate, log_prob, advantage), expected)
    clipped = gradient(losses.clipped_surrogate, log_prob, advantage, 0.2)
    np.testing.assert_allclose(clipped, expected)


def test_the_loss_of_one_step_methods_is_the_sum_of_its_parts():
    """−log π Â over steps or over episodes, ½ (V − target)², minus the entropy term."""
    dist = Categorical(jnp.array([[0.0, 1.0], [0.5, -0.5], [9.0, 9.0]]))
    policy = SimpleNamespace(apply=lambda params, obs: (dist, params * obs))
    rows = Batch(
        obs=jnp.array([1.0, 2.0, jnp.inf]),
        action=jnp.array([0, 1, 1]),
        log_prob=jnp.zeros(3),
        value=jnp.zeros(3),
        advantage=jnp.array([2.0, -1.0, jnp.nan]),
        target=jnp.array([3.0, 3.0, 3.0]),
        weight=jnp.array([1.0, 1.0, 0.0]),
    )
    log_prob = dist.log_prob(rows.action)[:2]
    policy_sum = -(2.0 * log_prob[0] - log_prob[1])
    value_loss = 0.5 * ((1.0 - 3.0) ** 2 + (2.0 - 3.0) ** 2) / 2
    entropy = dist.entropy()[:2].mean()
    for episodes, count in ((None, 2.0), (jnp.float32(5.0), 5.0)):
        loss_fn = losses.policy_gradient_loss(
            policy,
            value_coef=0.3,
            entropy_coef=0.1,
            episodes=None if episodes is None else lambda rows, n=episodes: n,
        )
        (loss, metrics), slope = jax.value_and_grad(loss_fn, has_aux=True)(1.0, rows)
        assert np.isfinite(slope)
        expected = policy_sum / count + 0.3 * value_loss - 0.1 * entropy
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["policy_loss"], policy_sum / count, rtol=1e-5)
        np.testing.assert_allclose(metrics["value_loss"], value_loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-5)


def test_squared_errors_by_hand():
    np.testing.assert_allclose(losses.squared_error(jnp.array(3.0), 1.0), 2.0)
    clipped = losses.clipped_squared_error
    # From 0 to 3 towards 4: no credit beyond 0 + 1. Away from 0: the full error.
    np.testing.assert_allclose(clipped(jnp.array(3.0), 0.0, 4.0, 1.0), 0.5 * 9)
    np.testing.assert_allclose(clipped(jnp.array(-3.0), 0.0, 4.0, 1.0), 0.5 * 49)


def test_approx_kl_is_k3():
    log_ratio = jnp.array([-1.0, 0.0, 1e-4, 2.0])
    expected = np.expm1(np.float64(log_ratio)) - np.float64(log_ratio)
    np.testing.assert_allclose(losses.approx_kl(log_ratio, 0.0), expected, rtol=1e-3, atol=1e-9)


def test_explained_variance_equals_sb3():
    arrays = GOLDEN("explained_variance/sb3")
    y, prediction = jnp.asarray(arrays["y_true"]), jnp.asarray(arrays["y_pred"])
    np.testing.assert_allclose(losses.explained_variance(prediction, y), arrays["ev"], rtol=1e-5)
    bad = losses.explained_variance(-prediction, y)
    np.testing.assert_allclose(bad, arrays["ev_bad_pred"], rtol=1e-5)
    assert jnp.isnan(losses.explained_variance(prediction, jnp.full_like(y, 3.0)))


def test_explained_variance_ignores_weightless_rows():
    value, target = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.5, 2.0, 2.0])
    padded = losses.explained_variance(
        jnp.append(value, jnp.nan), jnp.append(target, jnp.inf), jnp.array([1.0, 1.0, 1.0, 0.0])
    )
    np.testing.assert_allclose(padded, losses.explained_variance(value, target), rtol=1e-6)


def test_mean_weights_and_total():
    x, weight = jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 3.0, 0.0])
    np.testing.assert_allclose(losses.mean(x, weight), 7 / 4)
    np.testing.assert_allclose(losses.mean(x[:2]), 1.5)
    parts = losses.mean(x[:1], weight[:1], total=4.0) + losses.mean(x[1:], weight[1:], total=4.0)
    np.testing.assert_allclose(parts, 7 / 4)
    assert losses.mean(x, jnp.zeros(3)) == 0


def test_normalize_as_torch_std():
    x = jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(
        losses.normalize(x), (np.asarray(x) - x.mean()) / (np.std(x, ddof=1) + 1e-8), rtol=1e-6
    )
    population = (np.asarray(x) - x.mean()) / np.std(x)
    np.testing.assert_allclose(losses.normalize(x, ddof=0), population, rtol=1e-6)


def test_normalize_reads_only_rows_with_weight():
    x, weight = jnp.array([1.0, 2.0, 4.0, jnp.nan]), jnp.array([1.0, 1.0, 1.0, 0.0])
    found = losses.normalize(x, weight)
    np.testing.assert_allclose(found[:3], losses.normalize(x[:3]), rtol=1e-6)
    assert found[3] == 0


def test_one_row_alone_is_left_as_it_is():
    np.testing.assert_array_equal(losses.normalize(jnp.array([3.0])), [3.0])
    np.testing.assert_array_equal(
        losses.normalize(jnp.array([3.0, 9.0]), jnp.array([1.0, 0.0])), [3.0, 0.0]
    )


@pytest.mark.parametrize("constant", [0.1, -3e7, 1e-20])
def test_constants_have_nothing_to_normalise_or_explain(constant):
    """Rounding errors of the mean must not be scaled to unit variance."""
    x = jnp.full(100, constant)
    np.testing.assert_allclose(losses.normalize(x), 0.0, atol=1e-3)
    assert np.isnan(losses.explained_variance(jnp.arange(100.0), x))


def test_masked_rows_become_the_first_that_counts():
    weight = jnp.array([0.0, 0.0, 1.0, 1.0])
    row, core = jnp.array([jnp.nan, jnp.inf, 3.0, 4.0]), jnp.array([[1.0, 2.0]])
    batch = Batch((row, row[:, None]), row, row, row, row, row, weight, extra=core)
    masked = losses.mask(batch)
    np.testing.assert_array_equal(masked.action, [3, 3, 3, 4])
    np.testing.assert_array_equal(masked.obs[1][:, 0], [3, 3, 3, 4])
    np.testing.assert_array_equal(masked.extra, core)  # not one row per weight
    np.testing.assert_array_equal(masked.weight, weight)
    nothing = losses.mask(batch.replace(weight=jnp.zeros(4)))
    np.testing.assert_array_equal(nothing.action, jnp.zeros(4))


def test_gradients_are_finite_where_nothing_varies_and_where_all_is_lost():
    slope = jax.grad(lambda x: jnp.sum(losses.normalize(x) * jnp.arange(4.0)))(jnp.ones(4))
    assert np.isfinite(slope).all()
    kl, slope = jax.value_and_grad(losses.approx_kl)(jnp.float32(200.0), 0.0)
    assert np.isfinite(kl) and np.isfinite(slope)
