"""PPO and its family as pure jitted functions."""

from typing import TYPE_CHECKING, Any

from ppo_jax.advantages import (
    discounted_returns,
    estimate_gae,
    estimate_returns,
    exponential_average,
    gae,
    k_step_advantages,
)
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.divergences import importance_ratio, importance_weighted_mean, k1, k2, k3
from ppo_jax.losses import (
    approx_kl,
    clipped_squared_error,
    clipped_surrogate,
    explained_variance,
    policy_gradient,
    squared_error,
    surrogate,
)
from ppo_jax.types import Algorithm, Batch, LearnerState, TrainState, Trajectory

if TYPE_CHECKING:
    from ppo_jax.agent import load

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Batch",
    "LearnerState",
    "TrainState",
    "Trajectory",
    "approx_kl",
    "clipped_squared_error",
    "clipped_surrogate",
    "discounted_returns",
    "estimate_gae",
    "estimate_returns",
    "explained_variance",
    "exponential_average",
    "gae",
    "importance_ratio",
    "importance_weighted_mean",
    "k1",
    "k2",
    "k3",
    "k_step_advantages",
    "load",
    "policy_gradient",
    "squared_error",
    "surrogate",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, imported when it is used: it needs environments and checkpoints, formulas do not."""
    if name == "load":
        from ppo_jax.agent import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
