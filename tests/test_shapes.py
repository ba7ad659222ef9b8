"""Arrays with incompatible shapes are refused by the functions that receive them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import advantages, divergences, losses, normalization, sgd, shapes
from ppo_jax.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical
from ppo_jax.rlhf import optimum, rewards
from ppo_jax.types import Batch, Trajectory

T = N = M = L = 4  # equal sizes, so that wrong axes fit


def ones(*shape):
    return jnp.ones(shape)


def steps(**leaves):
    names = ("log_prob", "value", "next_value", "reward", "terminated", "done", "weight")
    return Trajectory(obs=(), action=(), **{name: ones(T, N) for name in names} | leaves)


def epochs(order, rows=None, minibatches=2, **more):
    optimizer = sgd.make_optimizer()
    rows = {"x": ones(M, 3)} if rows is None else rows
    loss_fn = lambda params, rows: (jnp.sum(params * rows["x"]), {})
    learner = sgd.init(ones(3), optimizer)
    more |= {"order": order, "minibatches": minibatches}
    return sgd.sgd_epochs(learner, rows, loss_fn, optimizer, **more)


class OneColumn:
    """A policy whose critic does not remove its last axis."""

    def apply(self, params, obs):
        return self, ones(M, 1)

    def log_prob(self, action):
        return ones(M)

    def entropy(self):
        return ones(M)


def rows_of(*shape):
    x = ones(*shape)
    return Batch(obs=x, action=x, log_prob=x, value=x, advantage=x, target=x, weight=x)


def moments(*shape):
    return normalization.init(shape)


TN, TIME, COLUMN, ROWS = ones(T, N), ones(T), ones(M, 1), ones(M)
NUMBERS = jnp.arange(M)[None]

# Wrong arguments, and the two shapes that the message names.
REFUSED = {
    "gae: discount [T]": (lambda: advantages.gae(TN, TIME, TN, TN, TN, 0.9), "(4, 4)", "(4,)"),
    "gae: value [N]": (lambda: advantages.gae(TN, TN, TIME, TN, TN, 0.9), "(4, 4)", "(4,)"),
    "gae: cont [T, 1]": (lambda: advantages.gae(TN, TN, TN, TN, COLUMN, 0.9), "(4, 4)", "(4, 1)"),
    "gae: lambda [N]": (lambda: advantages.gae(TN, TN, TN, TN, TN, ROWS), "(4, 4)", "(4,)"),
    "gae: column and row": (
        lambda: advantages.gae(COLUMN, COLUMN, COLUMN.T, COLUMN, COLUMN, 0.9),
        "(4, 1)",
        "(1, 4)",
    ),
    "k_step_advantages": (
        lambda: advantages.k_step_advantages(TN, TIME, TN, TN, TN, 2),
        "(4, 4)",
        "(4,)",
    ),
    "exponential_average": (lambda: advantages.exponential_average(TN, ROWS), "(4,)", "()"),
    "discounted_returns: discount": (
        lambda: advantages.discounted_returns(TN, TIME, 0.0),
        "(4, 4)",
        "(4,)",
    ),
    "discounted_returns: last value": (
        lambda: advantages.discounted_returns(ones(T, N, 2), ones(T, N, 2), ones(2)),
        "(4, 2)",
        "(2,)",
    ),
    "estimate_gae: value": (
        lambda: advantages.estimate_gae(steps(value=ones(T, N, 1)), gamma=0.9, lambda_=0.9),
        "(4, 4)",
        "(4, 4, 1)",
    ),
    "estimate_gae: gamma": (
        lambda: advantages.estimate_gae(steps(), gamma=ROWS, lambda_=0.9),
        "(4, 4)",
        "(4,)",
    ),
    "estimate_returns: weight": (
        lambda: advantages.estimate_returns(steps(weight=TIME), gamma=0.9),
        "(4, 4)",
        "(4,)",
    ),
    "estimate_returns: done": (
        lambda: advantages.estimate_returns(steps(done=COLUMN), gamma=0.9),
        "(4, 4)",
        "(4, 1)",
    ),
    "policy_gradient": (lambda: losses.policy_gradient(ROWS, COLUMN), "(4,)", "(4, 1)"),
    "surrogate": (lambda: losses.surrogate(ROWS, ROWS, COLUMN), "(4,)", "(4, 1)"),
    "clipped_surrogate: old": (
        lambda: losses.clipped_surrogate(ROWS, COLUMN, ROWS, 0.2),
        "(4,)",
        "(4, 1)",
    ),
    "clipped_surrogate: ε": (
        lambda: losses.clipped_surrogate(TN, TN, TN, ROWS),
        "(4, 4)",
        "(4,)",
    ),
    "squared_error": (lambda: losses.squared_error(COLUMN, ROWS), "(4, 1)", "(4,)"),
    "clipped_squared_error": (
        lambda: losses.clipped_squared_error(ROWS, ROWS, COLUMN, 0.2),
        "(4,)",
        "(4, 1)",
    ),
    "approx_kl": (lambda: losses.approx_kl(ROWS, COLUMN), "(4,)", "(4, 1)"),
    "explained_variance: target": (
        lambda: losses.explained_variance(COLUMN, ROWS),
        "(4, 1)",
        "(4,)",
    ),
    "explained_variance: weight": (
        lambda: losses.explained_variance(TN, TN, ROWS),
        "(4, 4)",
        "(4,)",
    ),
    "mean: weight of rows": (lambda: losses.mean(TN, ROWS), "(4, 4)", "(4,)"),
    "mean: weight a number": (lambda: losses.mean(ROWS, jnp.array(1.0)), "(4,)", "()"),
    "mean: total": (lambda: losses.mean(ROWS, ROWS, ROWS), "(4,)", "()"),
    "normalize: weight of rows": (lambda: losses.normalize(TN, ROWS), "(4, 4)", "(4,)"),
    "normalize: weight a number": (lambda: losses.normalize(ROWS, jnp.array(1.0)), "(4,)", "()"),
    "total: losses of rows": (
        lambda: losses.total(ROWS, 0.0, 0.0, value_coef=1.0, entropy_coef=0.0),
        "()",
        "(4,)",
    ),
    "Categorical: action [M, 1]": (
        lambda: Categorical(ones(M, 3)).log_prob(COLUMN),
        "(4,)",
        "(4, 1)",
    ),
    "Categorical: kl": (lambda: Categorical(TN).kl(Categorical(COLUMN)), "(4, 4)", "(4, 1)"),
    "DiagGaussian: action [M]": (
        lambda: DiagGaussian(COLUMN, ones(1)).log_prob(ROWS),
        "(4, 1)",
        "(4,)",
    ),
    "DiagGaussian: kl": (
        lambda: DiagGaussian(TN, ROWS).kl(DiagGaussian(COLUMN, ROWS)),
        "(4, 4)",
        "(4, 1)",
    ),
    "Bernoulli: action [D]": (lambda: Bernoulli(TN).log_prob(ROWS), "(4, 4)", "(4,)"),
    "MultiCategorical: action [M]": (
        lambda: MultiCategorical(ones(M, 5), (2, 3)).log_prob(ROWS),
        "(4, 2)",
        "(4,)",
    ),
    "adaptive_kl: target of rows": (
        lambda: rewards.adaptive_kl(0.1, 0.2, ROWS, 100.0, 4),
        "()",
        "(4,)",
    ),
    "predict": (lambda: losses.predict(OneColumn(), (), rows_of(M)), "(4,)", "(4, 1)"),
    "importance_ratio": (lambda: divergences.importance_ratio(ROWS, COLUMN), "(4,)", "(4, 1)"),
    "importance_weighted_mean": (
        lambda: divergences.importance_weighted_mean(TN, ROWS, ROWS),
        "(4, 4)",
        "(4,)",
    ),
    "k1": (lambda: divergences.k1(ROWS, COLUMN), "(4,)", "(4, 1)"),
    "k2": (lambda: divergences.k2(ROWS, COLUMN), "(4,)", "(4, 1)"),
    "k3": (lambda: divergences.k3(ROWS, COLUMN), "(4,)", "(4, 1)"),
    "sgd_epochs: one row of the order": (lambda: epochs(jnp.arange(M)), "[K, M]", "(4,)"),
    "sgd_epochs: transposed order": (lambda: epochs(NUMBERS.T, minibatches=1), "(4, 1)", "(4, 3)"),
    "sgd_epochs: a leaf of other rows": (
        lambda: epochs(NUMBERS, {"x": ones(M, 3), "y": ones(M + 1)}),
        "(1, 4)",
        "['y'] has the shape (5,)",
    ),
    "sgd_epochs: a leaf without rows": (
        lambda: epochs(NUMBERS, {"x": ones(M, 3), "y": jnp.array(1.0)}),
        "(1, 4)",
        "['y'] has the shape ()",
    ),
    "sgd_epochs: minibatches": (lambda: epochs(NUMBERS, minibatches=3), "4 rows", "3 minibatches"),
    "sgd_epochs: no minibatches": (lambda: epochs(NUMBERS, minibatches=0), "4 rows", "0 "),
    "sgd_epochs: micro-batches": (
        lambda: epochs(NUMBERS, minibatches=1, micro_batches=3),
        "4 rows",
        "3 micro-batches",
    ),
    "update: elements": (lambda: normalization.update(moments(3), ones(4, 6)), "(3,)", "(4, 6)"),
    "update: transposed weight": (
        lambda: normalization.update(moments(3), ones(2, 4, 3), ones(4, 2)),
        "(2, 4)",
        "(4, 2)",
    ),
    "update: one weight": (
        lambda: normalization.update(moments(), ROWS, jnp.array(1.0)),
        "(4,)",
        "()",
    ),
    "normalize: elements": (
        lambda: normalization.normalize(moments(3, 1), ones(3)),
        "(3, 1)",
        "3,",
    ),
    "scale": (lambda: normalization.scale(moments(4), COLUMN), "(4,)", "(4, 1)"),
    "token_rewards: score": (
        lambda: rewards.token_rewards(TN, COLUMN, TN, 0.1),
        "(4,)",
        "(4, 1)",
    ),
    "token_rewards: kl of responses": (
        lambda: rewards.token_rewards(ROWS, ROWS, TN, 0.1),
        "(4, 4)",
        "(4,)",
    ),
    "token_rewards: one response": (
        lambda: rewards.token_rewards(ROWS, ROWS, ROWS, 0.1),
        "[B, L]",
        "(4,)",
    ),
    "token_rewards: β": (lambda: rewards.token_rewards(TN, ROWS, TN, ROWS), "()", "(4,)"),
    "kl_estimate": (lambda: rewards.kl_estimate(TN, ROWS, "k1"), "(4, 4)", "(4,)"),
    "kl_estimate: mask": (lambda: rewards.kl_estimate(TN, TN, "k3", ROWS), "(4, 4)", "(4,)"),
    "sequence_kl": (lambda: rewards.sequence_kl(TN, ROWS), "(4, 4)", "(4,)"),
    "adaptive_kl": (lambda: rewards.adaptive_kl(0.1, ROWS, 6.0, 1e4, 4), "(4,)", "()"),
    "whiten": (lambda: rewards.whiten(TN, ROWS), "(4, 4)", "(4,)"),
    "has_eos": (lambda: rewards.has_eos(ROWS, TN, 0), "(4,)", "(4, 4)"),
    "subtract_without_eos": (
        lambda: rewards.subtract_without_eos(COLUMN, ROWS > 0, 1.0),
        "(4, 1)",
        "(4,)",
    ),
    "replace_without_eos": (
        lambda: rewards.replace_without_eos(COLUMN, ROWS > 0, -1.0),
        "(4, 1)",
        "(4,)",
    ),
    "preference_loss": (lambda: rewards.preference_loss(COLUMN, ROWS), "(4, 1)", "(4,)"),
    "preference_loss: margin": (
        lambda: rewards.preference_loss(ROWS, ROWS, COLUMN),
        "(4,)",
        "(4, 1)",
    ),
    "objective": (lambda: optimum.objective(COLUMN, ROWS, 0.1), "(4, 1)", "(4,)"),
    "centering_loss": (lambda: rewards.centering_loss(COLUMN, ROWS), "(4, 1)", "(4,)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_do_not_belong_together_are_refused_with_both_shapes(name):
    call, *expected = REFUSED[name]
    for attempt in (call, jax.jit(call)):
        with pytest.raises(ValueError) as refusal:
            attempt()
        assert all(text in str(refusal.value) for text in expected), refusal.value


# Scalars and constant arrays are equivalent: a function and its arguments that may be scalars.
SCALARS = {
    "gae": (advantages.gae, (TN,) * 6, (1, 2, 3, 4, 5)),
    "k_step_advantages": (lambda *x: advantages.k_step_advantages(*x, 2), (TN,) * 5, (1, 2, 3, 4)),
    "discounted_returns": (advantages.discounted_returns, (TN, TN, ROWS), (1, 2)),
    "estimate_gae": (
        lambda gamma, lambda_: advantages.estimate_gae(steps(), gamma=gamma, lambda_=lambda_),
        (TN, TN),
        (0, 1),
    ),
    "policy_gradient": (losses.policy_gradient, (ROWS, ROWS), (0, 1)),
    "surrogate": (losses.surrogate, (ROWS,) * 3, (0, 1, 2)),
    "clipped_surrogate": (losses.clipped_surrogate, (ROWS,) * 4, (0, 1, 2, 3)),
    "squared_error": (losses.squared_error, (ROWS, ROWS), (0, 1)),
    "clipped_squared_error": (losses.clipped_squared_error, (ROWS,) * 4, (0, 1, 2, 3)),
    "approx_kl": (losses.approx_kl, (ROWS, ROWS), (0, 1)),
    "k3": (divergences.k3, (ROWS, ROWS), (0, 1)),
    "explained_variance": (losses.explained_variance, (jnp.arange(4.0), jnp.arange(4.0)), (0, 1)),
    "kl_estimate": (lambda *x: rewards.kl_estimate(*x, "k2"), (ROWS, ROWS), (0, 1)),
    "preference_loss": (rewards.preference_loss, (ROWS,) * 3, (0, 1, 2)),
    "subtract_without_eos": (rewards.subtract_without_eos, (ROWS, ROWS > 0, ROWS), (2,)),
    "importance_weighted_mean": (
        lambda log_p: divergences.importance_weighted_mean(TN, log_p, log_p),
        (TN,),
        (0,),
    ),
}


@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_stands_for_an_array_full_of_it(name):
    function, arrays, places = SCALARS[name]
    for place in places:
        number = 0.25
        as_number = [number if i == place else x for i, x in enumerate(arrays)]
        filled = [jnp.full_like(x, number) if i == place else x for i, x in enumerate(arrays)]
        found = jax.tree.leaves(function(*as_number))
        for a, b in zip(found, jax.tree.leaves(function(*filled)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_samples_with_several_components_share_their_weight():
    mean, variance = divergences.importance_weighted_mean(TN, COLUMN, COLUMN)
    assert mean.shape == variance.shape == (4,)


def test_shapes_are_checked_inside_every_transformation():
    """Under vmap, a check sees the shape of one example; the program contains no trace of it."""
    weight = lambda x: losses.mean(x, jnp.ones_like(x))
    assert jax.vmap(weight)(TN).shape == (4,)
    assert jax.grad(weight)(ROWS).shape == (4,)
    assert jax.lax.scan(lambda carry, x: (carry, weight(x)), 0, TN)[1].shape == (4,)
    error = jax.vmap(losses.squared_error, in_axes=(0, None))(TN, ROWS)
    assert error.shape == (4, 4)
    checked = jax.make_jaxpr(losses.squared_error)(ROWS, ROWS)
    assert str(checked) == str(jax.make_jaxpr(lambda v, t: 0.5 * jnp.square(v - t))(ROWS, ROWS))


def test_the_message_names_the_arguments():
    with pytest.raises(ValueError) as refusal:
        advantages.gae(TN, TIME, TN, TN, TN, 0.95)
    assert str(refusal.value) == (
        "gae: arrays must have the same shape, but they are reward (4, 4), discount (4,), "
        "value (4, 4), next_value (4, 4), cont (4, 4)"
    )


def test_scalars_have_no_time():
    for call in (
        lambda: advantages.gae(1.0, 0.9, 0.0, 0.0, 1.0, 0.9),
        lambda: advantages.discounted_returns(jnp.array(1.0), 0.9, 0.0),
    ):
        with pytest.raises(ValueError, match="T steps"):
            call()


def test_the_common_shape():
    assert shapes.same("f", x=ROWS, y=2.0, z=None) == (4,)
    assert shapes.same("f", x=1, y=2.0) == ()
    assert shapes.leading("f", "x", ones(2, 4, 3), (3,)) == (2, 4)
