"""Advantage actor-critic, also called vanilla policy gradient (Mnih et al. 2016)."""

from typing import Any

import jax
import optax

from ppo_jax import losses, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.algorithms.configs import A2C as Config
from ppo_jax.types import Algorithm, Batch, LearnerState, LossFn, Metrics, PyTree, Trajectory


def make_loss(policy: Any, config: Config) -> LossFn:
    """The loss of one rollout.

    L(θ) = E[ −log π_θ(a|s) Â + c_v ½ (V_θ − V_target)² − c_e H[π_θ] ]

    Args:
        policy: its `apply(params, obs)` gives (distribution, value).
        config: c_v, c_e.

    Returns:
        (params, Batch [M]) -> ([], metrics)

    Source: Mnih et al. 2016, Asynchronous Methods for Deep RL, algorithm S3.
    """
    return losses.policy_gradient_loss(
        policy,
        value_coef=config.value_coef,
        entropy_coef=config.entropy_coef,
        normalize_advantage=config.normalize_advantage,
    )


def make(
    policy: Any, config: Config, optimizer: optax.GradientTransformation | None = None
) -> Algorithm:
    """A2C as three functions: one gradient step on each rollout, which is then thrown away.

    Args:
        policy: a Policy.
        config: Config.
        optimizer: another optax transformation than the one the config describes.

    Source: Mnih et al. 2016, algorithm S3, with all actors in step; the advantage is GAE's.
    """
    optimizer, begin, end = sgd.from_config(config, optimizer)

    def init(key: jax.Array, obs: PyTree) -> LearnerState:
        return sgd.init(policy.init(key, obs), optimizer)

    def estimate(trajectory: Trajectory) -> Batch:
        return estimate_gae(trajectory, gamma=config.gamma, lambda_=config.gae_lambda)

    def update(key: jax.Array, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        learner, now = begin(learner, batch.weight.size)
        learner, metrics = sgd.sgd_step(learner, batch, make_loss(policy, now), optimizer)
        return end(learner, batch, now, metrics)

    return Algorithm(init, estimate, update)
