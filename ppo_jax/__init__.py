"""PPO and related policy-gradient algorithms as pure jitted functions."""

from typing import TYPE_CHECKING

from ppo_jax.lazy import attach

if TYPE_CHECKING:
    from ppo_jax import evaluate
    from ppo_jax.advantages import (
        discounted_returns,
        estimate_gae,
        estimate_returns,
        exponential_average,
        gae,
        k_step_advantages,
    )
    from ppo_jax.agent import load
    from ppo_jax.algorithms import ALGORITHMS
    from ppo_jax.divergences import importance_ratio, importance_weighted_mean, k1, k2, k3
    from ppo_jax.experiment import run
    from ppo_jax.losses import (
        approx_kl,
        clipped_squared_error,
        clipped_surrogate,
        explained_variance,
        policy_gradient,
        squared_error,
        surrogate,
    )
    from ppo_jax.train import build, make_train
    from ppo_jax.types import Algorithm, Batch, LearnerState, TrainState, Trajectory

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Batch",
    "LearnerState",
    "TrainState",
    "Trajectory",
    "approx_kl",
    "build",
    "clipped_squared_error",
    "clipped_surrogate",
    "discounted_returns",
    "estimate_gae",
    "estimate_returns",
    "evaluate",
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
    "make_train",
    "policy_gradient",
    "run",
    "squared_error",
    "surrogate",
]

__version__ = "0.1.0"

# Every public name is imported when it is first used, so that the command line need not import JAX.
__getattr__, __dir__ = attach(
    __name__,
    {
        "advantages": (
            "discounted_returns",
            "estimate_gae",
            "estimate_returns",
            "exponential_average",
            "gae",
            "k_step_advantages",
        ),
        "agent": ("load",),
        "algorithms": ("ALGORITHMS",),
        "divergences": ("importance_ratio", "importance_weighted_mean", "k1", "k2", "k3"),
        "evaluate": ("evaluate",),  # a module that can be called
        "experiment": ("run",),
        "losses": (
            "approx_kl",
            "clipped_squared_error",
            "clipped_surrogate",
            "explained_variance",
            "policy_gradient",
            "squared_error",
            "surrogate",
        ),
        "train": ("build", "make_train"),
        "types": ("Algorithm", "Batch", "LearnerState", "TrainState", "Trajectory"),
    },
)
