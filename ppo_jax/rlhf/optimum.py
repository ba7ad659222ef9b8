"""The optimum of KL-regularised reward in closed form, and the objective of a policy."""

from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax import shapes


def optimal_value(score: jax.Array, kl_coef: jax.Array | float) -> jax.Array:
    """The optimal value of the objective, estimated from samples of the reference.

    max_π E_π[r] − β KL(π ‖ π_ref) = β log E_ref[exp(r / β)],   reached by π* ∝ π_ref exp(r / β)

    Args:
        score: [N, K] scores r of K responses of the reference to each of N prompts.
        kl_coef: KL coefficient β > 0.

    Returns:
        [N] estimates of J*. The estimate has a negative bias by Jensen's inequality, which grows as
        β or the number of samples decreases.

    Source: Ziegler et al. 2019, section 2; Korbak et al. 2022, RL with KL Penalties is Better
    Viewed as Bayesian Inference, eq. 4.
    """
    count = jnp.log(jnp.asarray(score.shape[-1], jnp.float32))
    return kl_coef * (jax.nn.logsumexp(score / kl_coef, axis=-1) - count)


def optimal_moments(score: jax.Array, kl_coef: jax.Array | float) -> dict[str, jax.Array]:
    """Expected score and KL of the optimal policy, by importance weighting of reference samples.

    w ∝ exp(r / β):   E*[r] = Σ w r,   KL* = (E*[r] − J*) / β

    Args:
        score: [N, K] scores r of K responses of the reference to each of N prompts.
        kl_coef: KL coefficient β > 0.

    Returns:
        A dict with the arrays score [N], kl [N] in nats and objective [N], which is J*.
    """
    best = optimal_value(score, kl_coef)
    expected = jnp.sum(jax.nn.softmax(score / kl_coef, axis=-1) * score, axis=-1)
    return {"score": expected, "kl": (expected - best) / kl_coef, "objective": best}


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
