"""The objectives of PPO's relatives, each against numbers computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config, losses, make_train


def test_the_simple_objective_by_hand():
    # ρ = 1.5, Â = 2, ε = 0.2: 2 · 0.25 / 0.4 − 3 = −1.75. With Â = −2: 1.25 + 3 = 4.25.
    log_ratio = jnp.log(1.5)
    loss = losses.simple_surrogate(log_ratio, jnp.zeros(()), jnp.asarray(2.0), 0.2)
    assert float(loss) == pytest.approx(-1.75, rel=1e-5)
    loss = losses.simple_surrogate(log_ratio, jnp.zeros(()), jnp.asarray(-2.0), 0.2)
    assert float(loss) == pytest.approx(4.25, rel=1e-5)


@pytest.mark.parametrize(("advantage", "best"), [(2.0, 1.2), (-0.5, 0.8)])
def test_the_simple_objective_is_best_at_the_border_of_the_interval(advantage, best):
    def loss(ratio: jax.Array) -> jax.Array:
        return losses.simple_surrogate(jnp.log(ratio), 0.0, jnp.asarray(advantage), 0.2)

    assert float(jax.grad(loss)(jnp.asarray(best))) == pytest.approx(0.0, abs=1e-5)
    # Beyond the border a step of gradient descent returns to the interval.
    beyond = best + 0.1 * np.sign(best - 1)
    assert np.sign(float(jax.grad(loss)(jnp.asarray(beyond)))) == np.sign(best - 1)


def test_the_discovered_objective_by_hand():
    # Â = 1, ρ = 2: x = 1, c = 2, d = 1 − 2 tanh(0.5), L = d − 2.
    loss = losses.discovered_surrogate(jnp.log(2.0), jnp.zeros(()), jnp.asarray(1.0))
    assert float(loss) == pytest.approx(1 - 2 * np.tanh(0.5) - 2, rel=1e-5)
    # Â = −1, ρ = ½: x = log 2, c = 0.6, d = x − 0.6 tanh(x / 0.6), L = d + ½.
    loss = losses.discovered_surrogate(jnp.log(0.5), jnp.zeros(()), jnp.asarray(-1.0))
    x = np.log(2.0)
    assert float(loss) == pytest.approx(x - 0.6 * np.tanh(x / 0.6) + 0.5, rel=1e-5)
    # Â = −1, ρ = 2: x is negative, and so is x − c tanh(x / c): no drift.
    loss = losses.discovered_surrogate(jnp.log(2.0), jnp.zeros(()), jnp.asarray(-1.0))
    assert float(loss) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("function", [losses.simple_surrogate, losses.discovered_surrogate])
def test_at_the_behaviour_policy_the_gradient_is_the_policy_gradient(function):
    advantage = jnp.asarray([-1.5, 0.0, 2.0])
    more = (0.2,) if function is losses.simple_surrogate else ()

    def total(log_prob: jax.Array) -> jax.Array:
        return function(log_prob, jnp.zeros(3), advantage, *more).sum()

    np.testing.assert_allclose(jax.grad(total)(jnp.zeros(3)), -advantage, atol=1e-6)


def test_each_objective_trains_another_policy():
    found = []
    for objective in ("clip", "simple", "discovered"):
        made = config.make(
            preset="none", total_timesteps=512, num_steps=64, hidden=(8,), objective=objective
        )
        state, _ = jax.jit(make_train(made))(jax.random.key(0))
        found.append(float(jax.tree.leaves(state.learner.params["actor"])[0].sum()))
    assert len(set(found)) == 3
