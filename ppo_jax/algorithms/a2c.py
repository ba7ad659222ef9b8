"""Advantage actor-critic, also called vanilla policy gradient (Mnih et al. 2016)."""

import dataclasses
from typing import Any

import jax
import optax

from ppo_jax import losses, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.config.options import option
from ppo_jax.config.schedules import Scheduled
from ppo_jax.types import Algorithm, Batch, LearnerState, LossFn, Metrics, PyTree, Trajectory


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters. Every float may be a tracer, so that one program serves a whole sweep."""

    learning_rate: Scheduled = sgd.learning_rate(7e-4)
    anneal_timesteps: float | None = sgd.anneal_timesteps()
    gamma: float = option(0.99, "discount factor gamma per environment step", low=0, high=1)
    gae_lambda: float = option(
        0.95, "lambda of generalised advantage estimation (GAE)", low=0, high=1
    )
    entropy_coef: Scheduled = option(0.0, "coefficient of the entropy bonus in the loss", low=0)
    value_coef: float = option(0.5, "coefficient of the value loss in the total loss", low=0)
    normalize_advantage: bool = option(
        False, "whether to normalise the advantages of each rollout to mean 0 and variance 1"
    )
    max_grad_norm: float = sgd.max_grad_norm(0.5)
    adam_eps: float = sgd.adam_eps()

    def check(self, run: Any, env: Any) -> None:
        """Reject rollouts of a single sample, whose advantages cannot be normalised.

        Args:
            run: TrainConfig with num_envs and num_steps.
            env: environment, not used.

        Raises:
            ValueError: if a rollout has a single sample and advantages are normalised.
        """
        if self.normalize_advantage:
            losses.check_normalizable(run.num_envs * run.num_steps)


def make_loss(policy: Any, config: Config) -> LossFn:
    """The loss of one rollout.

    L(θ) = E[ −log π_θ(a|s) Â + c_v ½ (V_θ − V_target)² − c_e H[π_θ] ]

    Args:
        policy: policy whose `apply(params, obs)` returns (distribution, value).
        config: Config with the coefficients c_v and c_e.

    Returns:
        Function (params, Batch with leaves [M, ...]) -> (loss [], metrics).

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
    """A2C as three functions. Each rollout is used for one gradient step.

    Args:
        policy: policy, a Policy.
        config: hyperparameters, a Config.
        optimizer: optax transformation that replaces the configured optimiser.

    Source: Mnih et al. 2016, algorithm S3, with synchronous actors and GAE advantages.
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
