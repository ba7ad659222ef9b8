"""PPO with a KL penalty: its loss and gradients, and the adaptation of its coefficient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax import sgd
from ppo_jax.algorithms import ppo_kl
from ppo_jax.config import ConfigError
from ppo_jax.distributions import Categorical, DiagGaussian
from ppo_jax.envs import spaces
from ppo_jax.networks import make_policy
from ppo_jax.train import make_train
from ppo_jax.types import Batch
from reference import Golden, assert_close, table_inputs, table_policy

LOSS, RULE = Golden("02_ppo_loss"), Golden("04_adaptive_kl")
KINDS = pytest.mark.parametrize("kind", ["categorical", "gaussian"])


def old_distribution(kind):
    x = LOSS(f"{kind}/inputs_old")
    if kind == "categorical":
        return Categorical(jnp.asarray(x["old_logits"]))
    mean = jnp.asarray(x["old_mean"])
    return DiagGaussian(mean, jnp.broadcast_to(x["old_log_std"], mean.shape))


@KINDS
@pytest.mark.parametrize("case", ["A", "B", "C", "noadapt"])
def test_loss_equals_torchrl(kind, case):
    """Its value loss has no factor ½. Its gradients use the coefficient after adaptation, which
    happens before the backward pass (a defect of that release), and its loss value the previous
    one."""
    expected = LOSS(f"{kind}/torchrl_klpen_{case}")
    hp = {k[3:]: v.item() for k, v in expected.items() if k.startswith("hp/")}
    params, rows = table_inputs(kind)
    rows = rows.replace(extra=old_distribution(kind))
    config = ppo_kl.Config(
        value_coef=2 * hp["critic_coeff"],
        entropy_coef=hp["entropy_coeff"],
        normalize_advantage=False,
    )

    def loss(params, coef):
        return ppo_kl.make_loss(table_policy(kind), config, coef)(params, rows)

    _, metrics = loss(params, hp["beta"])
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(metrics["policy_loss"], expected["loss_objective"], **close)
    critic = config.value_coef * metrics["value_loss"]
    np.testing.assert_allclose(critic, expected["loss_critic"], **close)
    np.testing.assert_allclose(metrics["kl"], expected["kl"].mean(), **close)
    each = rows.extra.kl(table_policy(kind).apply(params, None)[0])
    np.testing.assert_allclose(each, expected["kl"], rtol=1e-4, atol=1e-6)
    grads = jax.grad(loss, has_aux=True)(params, float(expected["beta_after"]))[0]
    for name, gradient in grads.items():
        np.testing.assert_allclose(
            gradient, expected[f"grad_{name}"], rtol=1e-4, atol=1e-7, err_msg=name
        )
    after = ppo_kl.adapt_coefficient(jnp.float32(hp["beta"]), metrics["kl"], hp["dtarg"])
    np.testing.assert_allclose(after, expected["beta_after"], rtol=1e-6)


@pytest.mark.parametrize("case", ["torchrl_target0.01", "torchrl_target0.02"])
def test_the_rule_equals_torchrl(case):
    """24 updates, some of them within a thousandth of a threshold."""
    x = RULE(case)
    coef, found = jnp.float32(x["hp/init_beta"]), []
    for kl in x["kl"]:
        coef = ppo_kl.adapt_coefficient(coef, jnp.float32(kl), float(x["hp/target"]))
        found.append(float(coef))
    np.testing.assert_allclose(found, x["beta_after"], rtol=1e-6)


@pytest.mark.parametrize("case", ["default", "short_horizon"])
@pytest.mark.parametrize("peer", ["trl", "openrlhf"])
def test_the_proportional_rule_equals_its_peers(peer, case):
    x = RULE(f"{peer}_{case}")
    hp = {k[3:]: v.item() for k, v in x.items() if k.startswith("hp/")}
    for dtype, rtol in ((jnp.float32, 1e-5), (jnp.float64, 1e-12)):
        with jax.enable_x64(dtype is jnp.float64):
            coef, found = dtype(hp["init_kl_coef"]), []
            for kl in x["kl"]:
                coef = ppo_kl.proportional_coefficient(
                    coef, dtype(kl), hp["target"], horizon=hp["horizon"], samples=hp["n_steps"]
                )
                found.append(float(coef))
        np.testing.assert_allclose(found, x["kl_coef"], rtol=rtol)


def test_the_rule_of_the_paper():
    """×2 above 1.5 d, ÷2 below d / 1.5, and no change at the thresholds themselves."""
    kl = jnp.array([0.016, 0.015, 0.01, 0.01 / 1.5, 0.0066, 0.0, -1.0])
    found = ppo_kl.adapt_coefficient(jnp.float32(3.0), kl, 0.01)
    np.testing.assert_array_equal(found, [6.0, 3.0, 3.0, 3.0, 1.5, 1.5, 1.5])


def small_update(**options):
    policy = make_policy(spaces.Box(-9.0, 9.0, (3,)), spaces.Discrete(2), hidden=(8,))
    config = ppo_kl.Config(**{"learning_rate": 1e-2, "epochs": 3, **options})
    algorithm = ppo_kl.make(policy, config)
    key = jax.random.key(0)
    obs = jax.random.normal(key, (64, 3))
    learner = algorithm.init(key, obs)
    dist, value = policy.apply(learner.params, obs)
    action = dist.sample(key)
    log_prob = dist.log_prob(action)
    rows = Batch(obs, action, log_prob, value, obs[:, 0], value + obs[:, 1], jnp.ones(64))
    return policy, algorithm, learner, rows


def test_the_update_is_the_epochs_and_then_the_rule():
    """Composed from the parts; the measured KL is that of the whole batch, at the end."""
    policy, algorithm, learner, rows = small_update(kl_target=0.01, kl_coef=2.0)
    key = jax.random.key(1)
    moved, metrics = algorithm.update(key, learner, rows)
    old = policy.apply(learner.params, rows.obs)[0]
    by_hand, _ = sgd.sgd_epochs(
        learner,
        rows.replace(extra=old),
        ppo_kl.make_loss(policy, ppo_kl.Config(), 2.0),
        sgd.make_optimizer(learning_rate=1e-2),
        order=sgd.shuffles(key, 64, 3),
        minibatches=4,
    )
    assert_close(moved.params, by_hand.params, rtol=1e-5, atol=1e-6)
    kl = old.kl(policy.apply(by_hand.params, rows.obs)[0]).mean()
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-3)
    assert metrics["kl_coef"] == 2.0
    assert moved.extra == ppo_kl.adapt_coefficient(2.0, kl, 0.01)


def test_a_larger_coefficient_keeps_the_policy_closer():
    kls = []
    for coef in (0.0, 1.0, 100.0):
        _, algorithm, learner, rows = small_update(kl_coef=coef, kl_target=None, epochs=10)
        moved, metrics = algorithm.update(jax.random.key(1), learner, rows)
        assert moved.extra == coef  # constant without a target
        kls.append(float(metrics["kl"]))
    assert kls[0] > kls[1] > 10 * kls[2]


def test_the_coefficient_does_not_run_away():
    """With learning rate 0, the KL is always 0 and would halve the coefficient for ever."""
    _, algorithm, learner, rows = small_update(learning_rate=0.0, kl_coef=1.0)

    def again(learner, key):
        learner, metrics = algorithm.update(key, learner, rows)
        return learner, metrics["kl_coef"]

    _, coefs = jax.lax.scan(again, learner, jax.random.split(jax.random.key(0), 20))
    np.testing.assert_array_equal(coefs[:3], [1.0, 0.5, 0.25])
    assert coefs[-1] == 1.0 / ppo_kl.MAX_CHANGE


def test_the_kl_is_held_at_its_target():
    config = configs.make(
        preset="none",
        algorithm="ppo_kl",
        num_envs=8,
        num_steps=64,
        total_timesteps=150 * 512,
        learning_rate=5e-3,
        anneal_timesteps=np.inf,
        kl_target=0.005,
        hidden=(32,),
    )
    _, metrics = jax.jit(jax.vmap(make_train(config)))(jax.random.split(jax.random.key(0), 4))
    assert 0.0025 < np.median(metrics["kl"][:, 20:]) < 0.01
    assert len(np.unique(metrics["kl_coef"])) > 2


def test_padding_full_of_infinities_changes_nothing():
    _, algorithm, learner, rows = small_update(epochs=1, minibatches=1)
    real = jnp.arange(64) % 3 > 0
    poison = jax.tree.map(
        lambda x: jnp.where(
            real.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.inf if x.dtype == jnp.float32 else -7
        ),
        rows,
    ).replace(weight=real.astype(jnp.float32))
    clean = jax.tree.map(lambda x: x[np.flatnonzero(real)], rows)
    update = jax.jit(algorithm.update)
    expected, told = update(jax.random.key(1), learner, clean)
    moved, metrics = update(jax.random.key(1), learner, poison)
    assert_close(moved.params, expected.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["kl"], told["kl"], rtol=1e-3, atol=1e-8)


def test_a_weight_of_zero_cannot_adapt():
    with pytest.raises(ConfigError, match="kl_target must be None"):
        configs.make(preset="none", algorithm="ppo_kl", kl_coef=0.0)
    configs.make(preset="none", algorithm="ppo_kl", kl_coef=0.0, kl_target=None)


def test_the_coefficient_keeps_its_type_in_double_precision():
    with jax.enable_x64(True):
        _, algorithm, learner, rows = small_update(kl_coef=np.float64(1.0))
        shapes = jax.eval_shape(algorithm.update, jax.random.key(1), learner, rows)[0]
    assert shapes.extra.dtype == learner.extra.dtype
