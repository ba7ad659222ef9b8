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
    """Hyperparameters. Every float may be a tracer, so one program serves a whole sweep."""

    learning_rate: Scheduled = sgd.learning_rate(7e-4)
    anneal_timesteps: float | None = sgd.anneal_timesteps()
    gamma: float = option(0.99, "discount per step", low=0, high=1)
    gae_lambda: float = option(0.95, "trace decay of the advantage estimate", low=0, high=1)
    entropy_coef: Scheduled = option(0.0, "weight of the entropy bonus", low=0)
    value_coef: float = option(0.5, "weight of the value loss", low=0)
    normalize_advantage: bool = option(False, "per rollout")
    max_grad_norm: float = sgd.max_grad_norm(0.5)
    adam_eps: float = sgd.adam_eps()

    def check(self, run: Any, env: Any) -> None:
        """Refuse rollouts of a single row, whose advantages cannot be normalised.

        Args:
            run: its num_envs and num_steps.
            env: not used.

        Raises:
            ValueError: what to do instead.
        """
        if self.normalize_advantage:
            losses.check_normalizable(run.num_envs * run.num_steps)


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
