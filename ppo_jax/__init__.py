"""PPO and other on-policy algorithms as pure jitted functions."""

import importlib
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
    from ppo_jax import evaluate
    from ppo_jax.agent import load
    from ppo_jax.experiment import run

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
    "policy_gradient",
    "run",
    "squared_error",
    "surrogate",
]

__version__ = "0.1.0"

LATER = {
    "build": "train",
    "evaluate": "evaluate",  # a module that can be called
    "load": "agent",
    "make_train": "train",
    "run": "experiment",
}


def __getattr__(name: str) -> Any:
    """Import `run`, `evaluate`, `load`, `make_train` and `build` at first use, because they need
    environments and checkpoints, which the mathematical functions do not."""
    if name in LATER:
        module = importlib.import_module(f"ppo_jax.{LATER[name]}")
        return module if name == LATER[name] else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
