"""Elementwise losses of policy-gradient methods, and the one function that averages them.

Every loss maps [...] to [...] and is minimised. Only `mean` sums over samples, so that weights,
gradient accumulation and several devices are handled in one place. `predict`, `total` and
`policy_gradient_loss` combine the losses for a policy.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax import backend, divergences, parallel, shapes
from ppo_jax.distributions import log_prob_and_entropy
from ppo_jax.types import Batch, LossFn, Metrics, Params


class Prediction(NamedTuple):
    """Outputs of a policy for the M samples of a batch.

    Attributes:
        dist: action distributions with batch shape [M].
        log_prob: [M] log π_θ(a|s) of the actions taken.
        value: [M] value estimates V_θ(s).
        entropy: [M] entropies H[π_θ(·|s)], in nats.
    """

    dist: Any
    log_prob: jax.Array
    value: jax.Array
    entropy: jax.Array


def predict(policy: Any, params: Params, rows: Batch) -> Prediction:
    """Apply a policy to samples that `mask` has prepared.

    Where the weight is 0, the result is a constant and contributes no gradient.

    Args:
        policy: policy whose `apply(params, obs)` returns (distribution, value).
        params: parameters θ of the policy.
        rows: Batch with leaves [M, ...].

    Returns:
        Prediction of the policy for each sample.

    Raises:
        ValueError: if the log-probabilities, values or entropies and the weight have different
            shapes.
    """
    dist, value = policy.apply(params, rows.obs)

    def real(x: jax.Array, otherwise: jax.Array | float) -> jax.Array:
        return jnp.where(rows.weight > 0, x, otherwise)

    log_prob, entropy = log_prob_and_entropy(dist, rows.action)
    shapes.same(
        "predict: outputs of the policy",
        weight=rows.weight,
        log_prob=log_prob,
        value=value,
        entropy=entropy,
    )
    log_prob = real(log_prob, rows.log_prob)
    return Prediction(dist, log_prob, real(value, rows.target), real(entropy, 0.0))


def total(
    policy_loss: jax.Array,
    value_loss: jax.Array,
    entropy: jax.Array,
    *,
    value_coef: jax.Array | float,
    entropy_coef: jax.Array | float,
) -> tuple[jax.Array, Metrics]:
    """The joint loss of actor and critic, and its terms as metrics.

    L = L_π + c_v L_V − c_e H

    Args:
        policy_loss: [] policy loss L_π.
        value_loss: [] value loss L_V.
        entropy: [] mean entropy H of the policy, in nats.
        value_coef: coefficient c_v of the value loss.
        entropy_coef: coefficient c_e of the entropy bonus.

    Returns:
        (loss [], metrics).

    Raises:
        ValueError: if a loss or the entropy is not a scalar.

    Source: Mnih et al. 2016, Asynchronous Methods for Deep RL, section 4; Schulman et al. 2017,
    eq. 9.
    """
    parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    shapes.exact("total", (), "a number", **parts)
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy
    return loss, {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
    }


def policy_gradient(log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
    """The score-function loss, whose gradient is the policy gradient.

    L = −log π(a|s) Â

    Args:
        log_prob: [...] log π_θ(a|s).
        advantage: [...] advantages Â, or returns.

    Returns:
        [...] losses.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Sutton et al. 2000, Policy Gradient Methods; Williams 1992 (REINFORCE).
    """
    shapes.same("policy_gradient", log_prob=log_prob, advantage=advantage)
    return -log_prob * advantage


def surrogate(log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
    """The negated importance-weighted objective of TRPO.

    L = −ρ Â,   ρ = π_θ(a|s) / π_old(a|s)

    Args:
        log_prob: [...] log π_θ(a|s).
        old_log_prob: [...] log π_old(a|s) under the behaviour policy.
        advantage: [...] advantages Â.

    Returns:
        [...] losses. At θ = θ_old their gradient is that of `policy_gradient`.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Schulman et al. 2015, Trust Region Policy Optimization, eq. 14; Schulman et al. 2017,
    eq. 6.
    """
    shapes.same("surrogate", log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    return -divergences.importance_ratio(log_prob, old_log_prob) * advantage


def clipped_surrogate(
    log_prob: jax.Array,
    old_log_prob: jax.Array,
    advantage: jax.Array,
    clip_eps: jax.Array | float,
    *,
    clip_eps_high: jax.Array | float | None = None,
) -> jax.Array:
    """The negated clipped objective of PPO.

    L = −min(ρ Â, clip(ρ, 1−ε, 1+ε_high) Â),   ρ = π_θ(a|s) / π_old(a|s)

    Args:
        log_prob: [...] log π_θ(a|s).
        old_log_prob: [...] log π_old(a|s).
        advantage: [...] advantages Â.
        clip_eps: clip range ε > 0.
        clip_eps_high: ε_high > 0 of the upper bound; None for ε.

    Returns:
        [...] losses. The gradient is zero where ρ is outside the interval and a further step in
        the direction of Â would move it further outside.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms, eq. 7; Yu et al. 2025,
    DAPO, section 3.1 (the upper bound of its own).
    """
    high = clip_eps if clip_eps_high is None else clip_eps_high
    shapes.same(
        "clipped_surrogate",
        log_prob=log_prob,
        old_log_prob=old_log_prob,
        advantage=advantage,
        clip_eps=clip_eps,
        clip_eps_high=high,
    )
    ratio = divergences.importance_ratio(log_prob, old_log_prob)
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + high)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def policy_gradient_loss(
    policy: Any,
    *,
    value_coef: jax.Array | float,
    entropy_coef: jax.Array | float,
    normalize_advantage: bool = False,
    episodes: Callable[[Batch], jax.Array] | None = None,
) -> LossFn:
    """The loss of actor-critic methods that take one gradient step per rollout.

    L(θ) = E[ −log π_θ(a|s) Â + c_v ½ (V_θ − V_target)² − c_e H[π_θ] ]

    The methods differ in how they define Â, V and V_target.

    Args:
        policy: policy whose `apply(params, obs)` returns (distribution, value).
        value_coef: coefficient c_v of the value loss.
        entropy_coef: coefficient c_e of the entropy bonus.
        normalize_advantage: whether Â is normalised over the samples to mean 0 and standard
            deviation 1.
        episodes: function that returns the number of episodes [] in a batch. If it is given, the
            first term is summed over the steps of an episode and averaged over episodes; the
            other two terms remain means over steps.

    Returns:
        Function (params, Batch with leaves [M, ...]) -> (loss [], metrics).

    Source: Sutton et al. 2000, theorem 1; Mnih et al. 2016, algorithm S3.
    """

    def loss_fn(params: Params, rows: Batch) -> tuple[jax.Array, Metrics]:
        count = None if episodes is None else episodes(rows)
        rows = mask(rows)
        new = predict(policy, params, rows)
        advantage = rows.advantage
        if normalize_advantage:
            advantage = normalize(advantage, rows.weight)
        return total(
            mean(policy_gradient(new.log_prob, advantage), rows.weight, count),
            mean(squared_error(new.value, rows.target), rows.weight),
            mean(new.entropy, rows.weight),
            value_coef=value_coef,
            entropy_coef=entropy_coef,
        )

    return loss_fn


def squared_error(value: jax.Array, target: jax.Array) -> jax.Array:
    """Half the squared error of a value estimate: ½ (V − V_target)².

    Args:
        value: [...] value estimates V_θ(s).
        target: [...] value targets V_target.

    Returns:
        [...] losses.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Schulman et al. 2017, eq. 9 (with the factor ½ the gradient is V − V_target).
    """
    shapes.same("squared_error", value=value, target=target)
    return 0.5 * jnp.square(value - target)


def clipped_squared_error(
    value: jax.Array, old_value: jax.Array, target: jax.Array, clip_eps: jax.Array | float
) -> jax.Array:
    """The clipped value loss, which does not reward large changes of the value estimate.

    L = ½ max((V − V_target)², (V_old + clip(V − V_old, −ε, ε) − V_target)²)

    Args:
        value: [...] value estimates V_θ(s).
        old_value: [...] value estimates V_old(s) at the time of the rollout.
        target: [...] value targets V_target.
        clip_eps: clip range ε > 0, in the unit of the values.

    Returns:
        [...] losses.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: openai/baselines ppo2; Engstrom et al. 2020, Implementation Matters, section 3.
    """
    shapes.same(
        "clipped_squared_error", value=value, old_value=old_value, target=target, clip_eps=clip_eps
    )
    clipped = old_value + jnp.clip(value - old_value, -clip_eps, clip_eps)
    return jnp.maximum(squared_error(value, target), squared_error(clipped, target))


def approx_kl(log_prob: jax.Array, old_log_prob: jax.Array) -> jax.Array:
    """The k3 estimator of KL(π_old ‖ π_θ) from samples of π_old.

    k3 = (ρ − 1) − log ρ  ≥ 0,   unbiased

    Args:
        log_prob: [...] log π_θ(a|s).
        old_log_prob: [...] log π_old(a|s).

    Returns:
        [...] estimate for each sample, in nats.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Schulman 2020, Approximating KL Divergence (joschu.net/blog/kl-approx.html).
    """
    shapes.same("approx_kl", log_prob=log_prob, old_log_prob=old_log_prob)
    return divergences.k3(log_prob, old_log_prob)


def explained_variance(
    value: jax.Array, target: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """The fraction of the targets' variance that the value function explains.

    EV = 1 − Var[V_target − V] / Var[V_target]

    Args:
        value: [...] value estimates V.
        target: [...] value targets V_target.
        weight: [...] weights, or None if all are 1.

    Returns:
        [] explained variance, at most 1; 0 for a constant prediction, NaN for constant targets.

    Raises:
        ValueError: if value, target and weight have different shapes.

    Source: openai/baselines common/math_util.py.
    """
    shape = shapes.same("explained_variance", value=value, target=target)
    shapes.exact("explained_variance", shape, "value and target", weight=weight)
    target = jnp.broadcast_to(target, shape)

    def variance(x: jax.Array) -> jax.Array:
        return mean(jnp.square(_centre(x, weight)), weight)

    spread = variance(target)
    # Rounding gives constant targets a variance of about (ulp of their magnitude)².
    size = mean(jnp.abs(target), weight)
    constant = spread <= jnp.square(jnp.finfo(spread.dtype).eps * size)
    return jnp.where(constant, jnp.nan, 1.0 - variance(target - value) / spread)


def mean(
    x: jax.Array, weight: jax.Array | None = None, total: jax.Array | float | None = None
) -> jax.Array:
    """The weighted mean over all elements, with which every loss is reduced.

    Σ w x / total,   total = Σ w unless given

    If the batch is distributed over several devices (`ppo_jax.parallel`), both sums run over all
    of them.

    Args:
        x: [...] values. Elements of weight 0 are ignored, even if they are NaN.
        weight: [...] weights, or None if all are 1.
        total: [] denominator to use where x is a part of a batch: the sum of weights over all
            micro-batches, so that the results of the parts add up to the mean of the batch.

    Returns:
        [] mean; 0 if all weights are 0.

    Raises:
        ValueError: if the weight has another shape than x, or the total is not a scalar.
    """
    shapes.exact("mean", jnp.shape(x), "x", weight=weight)
    shapes.exact("mean", (), "a number", total=total)
    if weight is None:
        return parallel.mean(jnp.mean(x)) if total is None else parallel.sum(jnp.sum(x)) / total
    weighted = jnp.sum(jnp.where(weight > 0, x * weight, 0.0))
    if total is not None:
        return parallel.sum(weighted) / total
    weighted, count = parallel.sum((weighted, jnp.sum(weight)))
    return weighted / _at_least_one(count)


def means(weight: jax.Array | None = None, /, **values: jax.Array) -> dict[str, jax.Array]:
    """`mean` of several arrays, as one reduction where that is faster.

    One reduction is faster on accelerators and where devices communicate for each reduction.

    Args:
        weight: [...] weights, or None if all are 1.
        **values: [...] arrays by name, all of one shape.

    Returns:
        [] mean of each array by name.

    Raises:
        ValueError: if the arrays and the weight have different shapes.
    """
    shapes.same("means", **values)
    if not (backend.launch_bound() or parallel.axes()):
        return {name: mean(x, weight) for name, x in values.items()}
    together = jax.vmap(lambda x: mean(x, weight))(jnp.stack([*values.values()]))
    return dict(zip(values, together, strict=True))


def normalize(x: jax.Array, weight: jax.Array | None = None, ddof: int = 1) -> jax.Array:
    """Shift and scale to mean 0 and standard deviation 1.

    (x − μ) / (σ + 1e-8),   σ² = Σ w (x − μ)² / (Σ w − ddof)

    Args:
        x: [...] values, usually advantages.
        weight: [...] weights, or None if all are 1. Elements of weight 0 are ignored and become 0.
        ddof: 1 for the standard deviation of a sample (as torch.std), 0 for that of a population.

    Returns:
        [...] normalised values. A single element has no standard deviation and is left unchanged.

    Raises:
        ValueError: if the weight has another shape than x.

    Source: Andrychowicz et al. 2021, What Matters in On-Policy RL, section 3.3 (C67).
    """
    shapes.exact("normalize", jnp.shape(x), "x", weight=weight)
    weight = jnp.ones_like(x) if weight is None else weight
    count = parallel.sum(jnp.sum(weight))
    centred = _centre(x, weight)
    squares = parallel.sum(jnp.sum(weight * jnp.square(centred)))
    variance = squares / _at_least_one(count - ddof)
    # The gradient of √ at 0 is infinite, and 0 · ∞ is NaN.
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    normal = centred / (deviation + 1e-8)
    return jnp.where(count > 1, normal, jnp.where(weight > 0, x, 0.0))


def mask(batch: Batch) -> Batch:
    """Replace every sample of weight 0 by a valid one.

    A `where` around the loss is not sufficient: 0 · ∞ in the backward pass is NaN, so no infinite
    value may enter the network. The replacement is the first sample of positive weight rather
    than zeros, so that the policy receives a valid observation and a legal action.

    Args:
        batch: Batch with leaves [M, ...]. Leaves whose leading dimensions differ from the shape
            of the weight (such as an initial recurrent state per sequence) are left unchanged.

    Returns:
        Batch of the same shapes.
    """
    real = batch.weight.reshape(-1) > 0
    first = jnp.argmax(real)

    def replace(x: jax.Array) -> jax.Array:
        if x.shape[: batch.weight.ndim] != batch.weight.shape:
            return x
        rows = x.reshape(real.size, *x.shape[batch.weight.ndim :])
        column = real.reshape(real.size, *(1,) * (rows.ndim - 1))
        stand_in = jnp.where(real[first], rows[first], jnp.zeros_like(rows[first]))
        return jnp.where(column, rows, stand_in).reshape(x.shape)

    return dataclasses.replace(jax.tree.map(replace, batch), weight=batch.weight)


def _centre(x: jax.Array, weight: jax.Array | None) -> jax.Array:
    """x minus its mean, with 0 for elements of weight 0.

    The mean is subtracted twice, because the first mean of a constant x has a rounding error.
    """
    for _ in range(2):
        x = x - mean(x, weight)
    return x if weight is None else jnp.where(weight > 0, x, 0.0)


def _at_least_one(count: jax.Array) -> jax.Array:
    """A denominator that is never zero; a count is zero only if all weights are 0."""
    return jnp.where(count > 0, count, 1.0)
