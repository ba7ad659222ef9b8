"""The objectives of PPO's relatives, each against numbers computed by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ppo_jax import config, losses, make_train, optimizer, sgd
from ppo_jax.types import LearnerState


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


def test_the_bias_correction_restarts_and_the_moments_stay():
    params = {"w": jnp.ones(2)}
    made = optimizer.make_optimizer(np.inf, 1e-8, learning_rate=0.1)
    learner = optimizer.init(params, made)
    for _ in range(5):
        _, state = made.update({"w": jnp.asarray([1.0, -2.0])}, learner.opt_state, params)
        learner = dataclasses.replace(learner, opt_state=state)
    again = optimizer.restart_bias_correction(learner).opt_state.adam
    assert int(learner.opt_state.adam.count) == 5 and int(again.count) == 0
    np.testing.assert_array_equal(again.mu["w"], learner.opt_state.adam.mu["w"])
    np.testing.assert_array_equal(again.nu["w"], learner.opt_state.adam.nu["w"])
    # m = 0.9 · 0.40951 + 0.1 · 1 of the first weight, divided by 1 − 0.9 instead of 1 − 0.9⁶.
    step, _ = made.update({"w": jnp.asarray([1.0, -2.0])}, learner.opt_state._replace(adam=again))
    m, v = 0.9 * (1 - 0.9**5) + 0.1, 0.999 * (1 - 0.999**5) + 0.001
    expected = -0.1 * (m / 0.1) / np.sqrt(v / 0.001)
    assert float(step["w"][0]) == pytest.approx(expected, rel=1e-5)


def epochs(params: dict, made: optax.GradientTransformation) -> LearnerState:
    """The learner after two epochs of three steps, as an update takes them."""
    rows = {"x": jnp.linspace(-1.0, 2.0, 24).reshape(12, 2), "y": jnp.arange(12.0)}

    def loss_fn(params: dict, rows: dict) -> tuple[jax.Array, dict]:
        error = (rows["x"] @ params["kernel"]).sum(axis=1) + params["bias"].sum() - rows["y"]
        return jnp.mean(error**2), {}

    learner = optimizer.init(params, made)
    order = sgd.shuffles(jax.random.key(0), 12, 2)
    return sgd.sgd_epochs(learner, rows, loss_fn, made, order=order, minibatches=3)[0]


def test_weight_decay_in_an_update_is_adamw_of_matrices_alone():
    """Also within an epoch, where parameters without weight decay are one vector."""
    params = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)}
    ours = optimizer.make_optimizer(np.inf, 1e-5, learning_rate=0.1, weight_decay=0.3)
    mask = {"kernel": True, "bias": False}
    theirs = optax.adamw(0.1, eps=1e-5, weight_decay=0.3, mask=mask)
    found, wanted = epochs(params, ours).params, epochs(params, theirs).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)
    assert not np.allclose(
        found["kernel"], epochs(params, optax.adamw(0.1, eps=1e-5)).params["kernel"]
    )


def test_the_options_reach_the_optimiser():
    def trained(**options: object) -> np.ndarray:
        made = config.make(preset="none", total_timesteps=512, num_steps=64, hidden=(8,), **options)
        state, _ = jax.jit(make_train(made))(jax.random.key(0))
        return np.asarray(jax.tree.leaves(state.learner.params["actor"])[1])

    plain = trained()
    assert not np.array_equal(plain, trained(adam_reset=True))
    assert not np.array_equal(plain, trained(weight_decay=0.1))
    np.testing.assert_allclose(plain, trained(weight_decay=0.0), rtol=1e-5)
    assert not np.array_equal(plain, trained(optimizer="muon", weight_decay=0.1))
