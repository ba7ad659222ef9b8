"""A2C and the vanilla policy gradient: agreement of losses, gradients and updates with peers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ppo_jax import sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.algorithms import a2c, trpo
from ppo_jax.rollout import flatten_steps
from reference import (
    Golden,
    assert_close,
    sb3_params,
    sb3_policy,
    sb3_trajectory,
    spinup_policy,
    spinup_rows,
    table_inputs,
    table_policy,
    under,
)

LOSS, UPDATE = Golden("02_ppo_loss"), Golden("09_full_update")
KINDS = pytest.mark.parametrize("kind", ["categorical", "gaussian"])


def config_of(hp: dict) -> a2c.Config:
    """SB3's value loss has no factor ½."""
    return a2c.Config(
        value_coef=2 * hp["vf_coef"],
        entropy_coef=hp["ent_coef"],
        normalize_advantage=bool(hp["normalize_advantage"]),
        gamma=hp.get("gamma", 0.99),
        gae_lambda=hp.get("gae_lambda", 1.0),
        learning_rate=hp.get("learning_rate", 1e-3),
    )


def hyper(case: dict) -> dict:
    return {k: v.item() for k, v in under("hp/", case).items() if v.dtype.kind != "U"}


@KINDS
@pytest.mark.parametrize("case", ["sb3_a2c_A", "sb3_a2c_B"])
def test_loss_equals_sb3(kind, case):
    expected = LOSS(f"{kind}/{case}")
    params, rows = table_inputs(kind)
    loss_fn = a2c.make_loss(table_policy(kind), config_of(hyper(expected)))
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(loss, expected["loss"], **close)
    np.testing.assert_allclose(metrics["policy_loss"], expected["policy_loss"], **close)
    np.testing.assert_allclose(2 * metrics["value_loss"], expected["value_loss"], **close)
    np.testing.assert_allclose(-metrics["entropy"], expected["entropy_loss"], **close)
    for name, gradient in grads.items():
        np.testing.assert_allclose(
            gradient, expected[f"grad_{name}"], rtol=1e-4, atol=1e-7, err_msg=name
        )


@KINDS
def test_loss_equals_spinningup(kind):
    expected = LOSS(f"{kind}/spinup_vpg")
    params, rows = table_inputs(kind)
    loss_fn = a2c.make_loss(table_policy(kind), a2c.Config(value_coef=2.0))
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
    np.testing.assert_allclose(metrics["policy_loss"], expected["loss_pi"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(2 * metrics["value_loss"], expected["loss_v"], rtol=1e-5)
    for name, gradient in grads.items():
        np.testing.assert_allclose(
            gradient, expected[f"grad_{name}"], rtol=1e-4, atol=1e-7, err_msg=name
        )


@KINDS
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_update_equals_sb3_weight_by_weight(kind, optimizer):
    """Our estimate and update, with torch's RMSprop, whose epsilon is outside the root."""
    x, y = UPDATE(f"{kind}/inputs"), UPDATE(f"{kind}/sb3_a2c_{optimizer}")
    hp, policy = hyper(y), sb3_policy(kind, x)
    theirs = None
    if optimizer == "rmsprop":
        rmsprop = optax.rmsprop(hp["learning_rate"], 0.99, 1e-5, eps_in_sqrt=False)
        theirs = optax.chain(optax.clip_by_global_norm(hp["max_grad_norm"]), rmsprop)
    algorithm = a2c.make(policy, config_of(hp), theirs)
    batch = algorithm.estimate(
        sb3_trajectory(policy, sb3_params(kind, under("w_behaviour/", x)), x)
    )
    np.testing.assert_allclose(batch.advantage, y["advantages"], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(batch.target, y["returns"], rtol=2e-5, atol=2e-5)
    learner = algorithm.init(jax.random.key(0), batch.obs[0])
    learner = learner.replace(params=sb3_params(kind, under("w0/", x)))
    moved, metrics = jax.jit(algorithm.update)(jax.random.key(1), learner, flatten_steps(batch))
    assert_close(moved.params, sb3_params(kind, under("w1/", y)), rtol=0, atol=2e-5)
    np.testing.assert_allclose(metrics["loss"], y["loss"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], y["grad_norm"], rtol=1e-4)
    assert int(moved.step) == 1


def test_the_estimate_is_gae_at_the_configured_discounts():
    """All cases of SB3 have λ = 1."""
    x = UPDATE("categorical/inputs")
    policy = sb3_policy("categorical", x)
    trajectory = sb3_trajectory(policy, sb3_params("categorical", under("w0/", x)), x)
    batch = a2c.make(policy, a2c.Config(gamma=0.9, gae_lambda=0.7)).estimate(trajectory)
    expected = estimate_gae(trajectory, gamma=0.9, lambda_=0.7)
    np.testing.assert_array_equal(batch.advantage, expected.advantage)
    np.testing.assert_array_equal(batch.target, expected.target)


@KINDS
def test_update_equals_spinningup(kind):
    """One step of the policy, then one step of the value function, each with its own optimiser."""
    y = UPDATE(f"spinup_{kind}/vpg_update")
    hp = hyper(y)
    (policy, params_of), rows = spinup_policy(kind, y), spinup_rows(y)
    # Adam divides by the gradient's size, so the critic's loss does not affect the actor's step.
    config = a2c.Config(
        learning_rate=hp["pi_lr"], value_coef=0.0, max_grad_norm=np.inf, adam_eps=hp["adam_eps"]
    )
    algorithm = a2c.make(policy, config)
    learner = algorithm.init(jax.random.key(0), rows.obs).replace(params=params_of("w0/"))
    learner, metrics = algorithm.update(jax.random.key(1), learner, rows)
    np.testing.assert_allclose(metrics["policy_loss"], y["log_LossPi"], rtol=1e-4, atol=1e-6)
    # Its loss has no factor ½; Adam with twice the gradient equals Adam with half the epsilon.
    adam = sgd.make_optimizer(np.inf, 0.5 * hp["adam_eps"], learning_rate=hp["vf_lr"])
    critic = sgd.init(learner.params["critic"], adam).replace(params=learner.params)
    order = jnp.tile(jnp.arange(rows.weight.size), (int(hp["train_v_iters"]), 1))
    fitted, _ = trpo.fit_critic(policy, critic, rows, adam, order=order, minibatches=1)
    assert_close(fitted.params, params_of("w1/"), rtol=0, atol=5e-5)
