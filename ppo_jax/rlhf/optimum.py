"""The optimum of KL-regularised reward in closed form, and the objective of a policy.

Expectations under the reference are those of samples, or of all responses with their probabilities.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppo_jax import shapes

BISECTIONS = 60  # number of halvings of the interval of log β
INTERVAL = 1e5  # β is sought between the range of the scores divided and multiplied by this number


def optimal_value(
    score: jax.Array, kl_coef: jax.Array | float, log_ref: jax.Array | None = None
) -> jax.Array:
    """The optimal value of the objective.

    max_π E_π[r] − β KL(π ‖ π_ref) = β log E_ref[exp(r / β)],   reached by π* ∝ π_ref exp(r / β)

    Args:
        score: [N, K] scores r of K responses to each of N prompts: samples of the reference, or
            with `log_ref` all responses that the reference can give.
        kl_coef: KL coefficient β > 0.
        log_ref: [N, K] log-probabilities of the responses under the reference, −∞ where it is 0;
            None for samples.

    Returns:
        [N] values J*. From samples, the estimate has a negative bias by Jensen's inequality, which
        grows as β or the number of samples decreases.

    Source: Ziegler et al. 2019, section 2.1; Korbak et al. 2022, RL with KL Penalties is Better
    Viewed as Bayesian Inference, eq. 4.
    """
    return optimal_moments(score, kl_coef, log_ref)["objective"]


def optimal_moments(
    score: jax.Array, kl_coef: jax.Array | float, log_ref: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Expected score and KL of the optimal policy, by importance weighting of the reference.

    w ∝ π_ref exp(r / β):   E*[r] = Σ w r,   KL* = (E*[r] − J*) / β

    Args:
        score: [N, K] scores r of K responses to each of N prompts, as for `optimal_value`.
        kl_coef: KL coefficient β > 0.
        log_ref: [N, K] log-probabilities of the responses, or None for samples.

    Returns:
        A dict with the arrays score [N], kl [N] in nats and objective [N], which is J*.

    Raises:
        ValueError: score and log_ref have different shapes.
    """
    shapes.same("optimal_moments", score=score, log_ref=log_ref)
    if log_ref is None:
        log_ref = jnp.full(score.shape, -jnp.log(score.shape[-1]))
    # Relative to the best score: r / β would round the logarithms away if β is small.
    best = _best(score, log_ref)
    gap = jnp.minimum(score - best[..., None], 0.0)
    tilted = gap / kl_coef + log_ref
    log_sum = jax.nn.logsumexp(tilted, axis=-1)
    expected = jnp.sum(jax.nn.softmax(tilted, axis=-1) * gap, axis=-1)
    return {
        "score": best + expected,
        "kl": jnp.maximum(expected / kl_coef - log_sum, 0.0),
        "objective": best + kl_coef * log_sum,
    }


class BestPolicy(NamedTuple):
    """The best policy whose KL to the reference is within a budget.

    Attributes:
        score: [N] expected scores.
        kl: [N] KLs to the reference in nats; their mean is at most the budget.
        kl_coef: [] the coefficient β of the optimal policy; 0 if the budget allows the highest
            scores, with which the mean KL may be below the budget.
    """

    score: jax.Array
    kl: jax.Array
    kl_coef: jax.Array


@jax.jit
def under_budget(score: jax.Array, log_ref: jax.Array, budget: jax.Array | float) -> BestPolicy:
    """The highest mean of the expected scores among policies with a bounded mean of the KL.

    max_π E_x E_π[r]  subject to  E_x KL(π(·|x) ‖ π_ref(·|x)) ≤ κ

    The solution is π* ∝ π_ref exp(r / β) with one β for all prompts, the Lagrange multiplier of the
    budget; its KL decreases in β, which is found by bisection. If the budget is large enough for
    the responses with the highest score alone, π_ref conditioned on them, the limit for β → 0, is
    the solution with the smallest KL. A budget for each prompt is `jax.vmap` over arrays [1, K].

    Args:
        score: [N, K] scores r of all K responses to each of N prompts.
        log_ref: [N, K] log-probabilities of the responses under the reference, whose
            probabilities sum to 1 over K; −∞ where it is 0.
        budget: [] budget κ >= 0, in nats per response.

    Returns:
        Scores, KLs and β of the optimal policy.

    Raises:
        ValueError: score and log_ref have different shapes.

    Source: Peters, Mülling & Altün 2010, Relative Entropy Policy Search, section 2 (the same
    problem with states).
    """
    shapes.same("under_budget", score=score, log_ref=log_ref)
    best = _best(score, log_ref)
    reached = jnp.where(score >= best[:, None], log_ref, -jnp.inf)
    limit = jnp.maximum(-jax.nn.logsumexp(reached, axis=1), 0.0)  # KL for β → 0
    worst = jnp.min(jnp.where(log_ref > -jnp.inf, score, jnp.inf), axis=1)
    spread = jnp.max(best - worst)
    spread = jnp.where(spread > 0, spread, 1.0)

    def halve(_: Any, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = 0.5 * (low + high)
        exceeds = jnp.mean(optimal_moments(score, jnp.exp(middle), log_ref)["kl"]) > budget
        return jnp.where(exceeds, middle, low), jnp.where(exceeds, high, middle)

    ends = jnp.log(spread / INTERVAL), jnp.log(spread * INTERVAL)
    kl_coef = jnp.exp(jax.lax.fori_loop(0, BISECTIONS, halve, ends)[1])
    found = optimal_moments(score, kl_coef, log_ref)
    free = jnp.mean(limit) <= budget
    return BestPolicy(
        jnp.where(free, best, found["score"]),
        jnp.where(free, limit, found["kl"]),
        jnp.where(free, 0.0, kl_coef),
    )


def _best(score: jax.Array, log_ref: jax.Array) -> jax.Array:
    """[N] the highest score among the responses that the reference can give."""
    return jnp.max(jnp.where(log_ref > -jnp.inf, score, -jnp.inf), axis=-1)


def objective(score: Any, kl: Any, kl_coef: float) -> tuple[float, float]:
    """J = mean(r − β KL) and its standard error.

    Args:
        score: [B] scores r of the policy's responses.
        kl: [B] estimates Σ_t log π − log π_ref of the KL of each response, in nats.
        kl_coef: KL coefficient β.

    Returns:
        (J, standard error of J).

    Raises:
        ValueError: scores and KLs have different shapes.
    """
    shapes.same("objective", score=score, kl=kl)
    each = jnp.asarray(score) - kl_coef * jnp.asarray(kl)
    return float(jnp.mean(each)), float(jnp.std(each) / jnp.sqrt(each.size))
