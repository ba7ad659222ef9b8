"""Losses of the policy-gradient family, element by element, and the one reduction.

Every loss maps [...] to [...] and is to be minimised; `mean` is the only place where rows are
summed, so that weights, gradient accumulation and several devices are handled once. `predict`,
`total` and `policy_gradient_loss` put them together for a policy.
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
    """What a policy makes of the rows of a batch.

    Attributes:
        dist: [M] its action distributions.
        log_prob: [M] log π_θ(a|s) of the actions taken.
        value: [M] what its critic says.
        entropy: [M] H[π_θ(·|s)].
    """

    dist: Any
    log_prob: jax.Array
    value: jax.Array
    entropy: jax.Array


def predict(policy: Any, params: Params, rows: Batch) -> Prediction:
    """Apply a policy to rows that went through `mask`.

    Where the weight is 0 the result is a constant, on which no gradient depends.

    Args:
        policy: its `apply(params, obs)` gives (distribution, value).
        params: θ.
        rows: Batch [M].

    Raises:
        ValueError: log-probabilities, values or entropies of another shape than the weight.
    """
    dist, value = policy.apply(params, rows.obs)

    def real(x: jax.Array, otherwise: jax.Array | float) -> jax.Array:
        return jnp.where(rows.weight > 0, x, otherwise)

    log_prob, entropy = log_prob_and_entropy(dist, rows.action)
    shapes.same(
        "predict: what the policy returns for rows",
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
    """The loss of actor and critic together, and its parts as metrics.

    L = L_π + c_v L_V − c_e H

    Args:
        policy_loss: [] L_π.
        value_loss: [] L_V.
        entropy: [] H, the mean entropy of the policy.
        value_coef: c_v.
        entropy_coef: c_e.

    Raises:
        ValueError: a loss or entropy that is no single number.

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
        advantage: [...] Â, or a return.

    Returns:
        [...] loss.

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

    Source: Sutton et al. 2000, Policy Gradient Methods; Williams 1992 (REINFORCE).
    """
    shapes.same("policy_gradient", log_prob=log_prob, advantage=advantage)
    return -log_prob * advantage


def surrogate(log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
    """The importance-weighted objective of TRPO, negated.

    L = −ρ Â,   ρ = π_θ(a|s) / π_old(a|s)

    Args:
        log_prob: [...] log π_θ(a|s).
        old_log_prob: [...] log π_old(a|s), of the behaviour policy.
        advantage: [...] Â.

    Returns:
        [...] loss; at θ = θ_old its gradient is that of `policy_gradient`.

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

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
) -> jax.Array:
    """PPO's pessimistic objective, negated.

    L = −min(ρ Â, clip(ρ, 1−ε, 1+ε) Â),   ρ = π_θ(a|s) / π_old(a|s)

    Args:
        log_prob: [...] log π_θ(a|s).
        old_log_prob: [...] log π_old(a|s).
        advantage: [...] Â.
        clip_eps: ε > 0.

    Returns:
        [...] loss; its gradient is zero where ρ has left the interval in the direction Â asks for.

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms, eq. 7.
    """
    shapes.same(
        "clipped_surrogate",
        log_prob=log_prob,
        old_log_prob=old_log_prob,
        advantage=advantage,
        clip_eps=clip_eps,
    )
    ratio = divergences.importance_ratio(log_prob, old_log_prob)
    clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def policy_gradient_loss(
    policy: Any,
    *,
    value_coef: jax.Array | float,
    entropy_coef: jax.Array | float,
    normalize_advantage: bool = False,
    episodes: Callable[[Batch], jax.Array] | None = None,
) -> LossFn:
    """The loss of every method that takes one step on a rollout and throws it away.

    L(θ) = E[ −log π_θ(a|s) Â + c_v ½ (V_θ − V_target)² − c_e H[π_θ] ]

    What Â, V and V_target are is what tells the methods apart.

    Args:
        policy: its `apply(params, obs)` gives (distribution, value).
        value_coef: c_v.
        entropy_coef: c_e.
        normalize_advantage: shift and scale Â over the rows.
        episodes: rows -> [] how many episodes they are. The first term is then summed over the
            steps of an episode and averaged over episodes; the other two remain means over steps.

    Returns:
        (params, Batch [M]) -> ([], metrics)

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
        value: [...] V_θ(s).
        target: [...] what it should have been.

    Returns:
        [...] loss.

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

    Source: Schulman et al. 2017, eq. 9 (the ½ makes the gradient V − V_target).
    """
    shapes.same("squared_error", value=value, target=target)
    return 0.5 * jnp.square(value - target)


def clipped_squared_error(
    value: jax.Array, old_value: jax.Array, target: jax.Array, clip_eps: jax.Array | float
) -> jax.Array:
    """A squared error that gives no credit for moving far from the old value.

    L = ½ max((V − V_target)², (V_old + clip(V − V_old, −ε, ε) − V_target)²)

    Args:
        value: [...] V_θ(s).
        old_value: [...] V(s) when the data were collected.
        target: [...] what it should have been.
        clip_eps: ε > 0, in units of value.

    Returns:
        [...] loss.

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

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
        [...] estimate per sample, in nats.

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

    Source: Schulman 2020, Approximating KL Divergence (joschu.net/blog/kl-approx.html).
    """
    shapes.same("approx_kl", log_prob=log_prob, old_log_prob=old_log_prob)
    return divergences.k3(log_prob, old_log_prob)


def explained_variance(
    value: jax.Array, target: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """The share of the targets' variance that the value function predicts.

    EV = 1 − Var[V_target − V] / Var[V_target]

    Args:
        value: [...] predictions.
        target: [...] what came.
        weight: [...] or None for all ones.

    Returns:
        [] at most 1; 0 for a constant prediction; NaN where the targets do not vary.

    Raises:
        ValueError: value and target differ in shape, or the weight from them.

    Source: openai/baselines common/math_util.py.
    """
    shape = shapes.same("explained_variance", value=value, target=target)
    shapes.exact("explained_variance", shape, "value and target", weight=weight)
    target = jnp.broadcast_to(target, shape)

    def variance(x: jax.Array) -> jax.Array:
        return mean(jnp.square(_centre(x, weight)), weight)

    spread = variance(target)
    # Rounding leaves constant targets a variance of about (ulp of their size)².
    size = mean(jnp.abs(target), weight)
    constant = spread <= jnp.square(jnp.finfo(spread.dtype).eps * size)
    return jnp.where(constant, jnp.nan, 1.0 - variance(target - value) / spread)


def mean(
    x: jax.Array, weight: jax.Array | None = None, total: jax.Array | float | None = None
) -> jax.Array:
    """The weighted mean over all elements, the one reduction of every loss.

    Σ w x / total,   total = Σ w unless given

    Of a batch in several parts (`ppo_jax.parallel`) both sums are over all of them.

    Args:
        x: [...] values; what stands where the weight is 0 is not read, not even NaN.
        weight: [...] or None for all ones.
        total: [] the denominator, where x is only a part: the count over all micro-batches, whose
            sums then add up to the mean of the whole.

    Returns:
        [] mean; 0 if nothing has weight.

    Raises:
        ValueError: a weight whose shape is not that of x, or a total that is no scalar.
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
    """`mean` of several arrays over the same elements, as one reduction where that is faster: on
    accelerators, and where devices have to tell each other of each.

    Args:
        weight: [...] or None for all ones.
        **values: [...] by name, all of one shape.

    Returns:
        [] by name.

    Raises:
        ValueError: arrays whose shapes differ, or a weight whose shape is not theirs.
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
        x: [...] usually advantages.
        weight: [...] or None; elements of weight 0 take no part and become 0.
        ddof: 1 for the sample deviation (as torch.std), 0 for the population's.

    Returns:
        [...] normalised; one element alone has no deviation and is left as it is.

    Raises:
        ValueError: a weight whose shape is not that of x.

    Source: Andrychowicz et al. 2021, What Matters in On-Policy RL, section 3.3 (C67).
    """
    shapes.exact("normalize", jnp.shape(x), "x", weight=weight)
    weight = jnp.ones_like(x) if weight is None else weight
    count = parallel.sum(jnp.sum(weight))
    centred = _centre(x, weight)
    squares = parallel.sum(jnp.sum(weight * jnp.square(centred)))
    variance = squares / _at_least_one(count - ddof)
    # √ at 0 has no gradient, and 0 · ∞ is NaN.
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    normal = centred / (deviation + 1e-8)
    return jnp.where(count > 1, normal, jnp.where(weight > 0, x, 0.0))


def mask(batch: Batch) -> Batch:
    """The batch with every row of weight 0 replaced by one that is harmless.

    A `where` around the loss alone is not enough: 0 · ∞ in the backward pass is NaN, so nothing
    infinite may enter the network in the first place. The stand-in is the first row that counts,
    not zeros: a legal observation with a legal action, whatever the policy makes of them.

    Args:
        batch: leaves [M, ...]; those that do not have the weight's shape in front (an initial
            core per sequence, say) are left alone.

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
    """x minus its mean, elements of weight 0 as 0.

    Twice: the rounding error of the first mean would be all there is of a constant x.
    """
    for _ in range(2):
        x = x - mean(x, weight)
    return x if weight is None else jnp.where(weight > 0, x, 0.0)


def _at_least_one(count: jax.Array) -> jax.Array:
    """A denominator that is never zero; counts of zero only occur when nothing counts."""
    return jnp.where(count > 0, count, 1.0)
