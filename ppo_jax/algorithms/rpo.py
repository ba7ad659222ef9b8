"""Robust policy optimisation (RPO): noise on the mean of a Gaussian policy in the update."""

import dataclasses
from typing import Any

import jax

from ppo_jax.distributions import DiagGaussian
from ppo_jax.types import Batch


def perturbed(key: jax.Array, rows: Batch, alpha: jax.Array | float) -> Batch:
    """The samples of a gradient step, in which every mean of the policy has uniform noise.

    log N(a; μ + z, σ) = log N(a − z; μ, σ),   z ~ U(−α, α) for each sample and dimension

    The policy that acts has no noise. Because the density of an action depends on a − μ alone, the
    noise is subtracted from the actions, so that the loss is that of PPO.

    Args:
        key: PRNG key of this gradient step.
        rows: Batch with leaves [M, ...], whose actions are those of a DiagGaussian.
        alpha: largest absolute value α of the noise, in the unit of the actions.

    Returns:
        Batch with the actions a − z.

    Source: Rahman & Xue 2022, Robust Policy Optimization in Deep Reinforcement Learning
    (arXiv:2212.07536), algorithm 1, with the noise where their code has it: in the update alone.
    """
    noise = jax.random.uniform(key, rows.action.shape, rows.action.dtype, -alpha, alpha)
    return dataclasses.replace(rows, action=rows.action - noise)


def require_gaussian(dist: Any) -> None:
    """Refuse a distribution whose density does not depend on a − μ alone.

    Args:
        dist: distribution that the policy returned.

    Raises:
        ValueError: it is not a DiagGaussian.
    """
    if not isinstance(dist, DiagGaussian):
        raise ValueError(
            f"rpo_alpha is set, but the policy returns a {type(dist).__name__}; RPO needs a "
            "Gaussian without squashing (DiagGaussian): use rpo_alpha=None"
        )
