"""Proximal policy optimisation with the clipped surrogate (Schulman et al. 2017)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ppo_jax import losses, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.types import Algorithm, Batch, LearnerState, LossFn, Metrics, Params, PyTree, option


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters. Every float may be a tracer, so one program serves a whole sweep."""

    learning_rate: float = option(3e-4, "Adam's step size, of the first update", low=0)
    anneal_timesteps: float | None = option(
        None,
        "environment steps over which the learning rate falls linearly to 0; "
        "inf: constant; None: the whole run",
        low=0,
        high=math.inf,
        open_low=True,
    )
    epochs: int = option(4, "passes over each rollout", low=1)
    minibatches: int = option(4, "gradient steps per pass", low=1)
    gamma: float = option(0.99, "discount per step", low=0, high=1)
    gae_lambda: float = option(0.95, "trace decay of the advantage estimate", low=0, high=1)
    clip_eps: float = option(0.2, "the ratio is clipped to 1 ± this", low=0, open_low=True)
    value_clip_eps: float | None = option(
        None, "values are clipped to the old ± this; None: not", low=0, open_low=True
    )
    entropy_coef: float = option(0.0, "weight of the entropy bonus", low=0)
    value_coef: float = option(0.5, "weight of the value loss", low=0)
    normalize_advantage: bool = option(True, "per minibatch")
    max_grad_norm: float = option(
        0.5, "bound of the global norm; inf: none", low=0, high=math.inf, open_low=True
    )
    adam_eps: float = option(1e-5, "Adam's epsilon", low=0, open_low=True)
    target_kl: float | None = option(
        None,
        "stop an update once approx_kl of a minibatch exceeds 1.5 x this; None: never",
        low=0,
        open_low=True,
    )


def make_loss(policy: Any, config: Config) -> LossFn:
    """The loss of one minibatch.

    L(θ) = E[ −min(ρ Â, clip(ρ, 1−ε, 1+ε) Â) + c_v ½ (V_θ − V_target)² − c_e H[π_θ] ]

    Args:
        policy: its `apply(params, obs)` gives (distribution, value).
        config: ε, c_v, c_e and the switches.

    Returns:
        (params, Batch [M]) -> ([], metrics)

    Source: Schulman et al. 2017, eq. 9.
    """

    def loss_fn(params: Params, rows: Batch) -> tuple[jax.Array, Metrics]:
        rows = losses.mask(rows)
        dist, value = policy.apply(params, rows.obs)

        def real(x: jax.Array, otherwise: jax.Array | float) -> jax.Array:
            return jnp.where(rows.weight > 0, x, otherwise)

        def mean(x: jax.Array) -> jax.Array:
            return losses.mean(x, rows.weight)

        log_prob = real(dist.log_prob(rows.action), rows.log_prob)
        value, entropy = real(value, rows.target), mean(real(dist.entropy(), 0.0))
        advantage = rows.advantage
        if config.normalize_advantage:
            advantage = losses.normalize(advantage, rows.weight)
        policy_loss = mean(
            losses.clipped_surrogate(log_prob, rows.log_prob, advantage, config.clip_eps)
        )
        value_loss = mean(value_error(value, rows))
        loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
        ratio = jnp.exp(log_prob - rows.log_prob)
        return loss, {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": mean(losses.approx_kl(log_prob, rows.log_prob)),
            "clip_fraction": mean(jnp.abs(ratio - 1.0) > config.clip_eps),
        }

    def value_error(value: jax.Array, rows: Batch) -> jax.Array:
        if config.value_clip_eps is None:
            return losses.squared_error(value, rows.target)
        return losses.clipped_squared_error(value, rows.value, rows.target, config.value_clip_eps)

    return loss_fn


def make(
    policy: Any, config: Config, optimizer: optax.GradientTransformation | None = None
) -> Algorithm:
    """PPO-clip as three functions.

    Args:
        policy: a Policy.
        config: Config; an anneal_timesteps of None, which a run replaces by its own length, is a
            constant rate here.
        optimizer: another optax transformation than the one the config describes; its learning
            rate is its own affair.

    Source: Schulman et al. 2017, algorithm 1.
    """
    ours = optimizer is None
    if optimizer is None:
        optimizer = sgd.make_optimizer(
            config.max_grad_norm, config.adam_eps, learning_rate=config.learning_rate
        )
    loss_fn = make_loss(policy, config)
    horizon = math.inf if config.anneal_timesteps is None else config.anneal_timesteps
    stop = None
    if config.target_kl is not None:
        limit = 1.5 * config.target_kl

        def stop(metrics: Metrics) -> jax.Array:
            return metrics["approx_kl"] > limit

    def init(key: jax.Array, obs: PyTree) -> LearnerState:
        params = policy.init(key, obs)
        return LearnerState(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def estimate(trajectory):
        return estimate_gae(trajectory, gamma=config.gamma, lambda_=config.gae_lambda)

    def update(key: jax.Array, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        if ours:
            learner = sgd.anneal(learner, config.learning_rate, horizon, batch.weight.size)
        learner, metrics = sgd.sgd_epochs(
            learner,
            batch,
            loss_fn,
            optimizer,
            order=sgd.shuffles(key, batch.weight.shape[0], config.epochs),
            minibatches=config.minibatches,
            stop=stop,
        )
        metrics["explained_variance"] = losses.explained_variance(
            batch.value, batch.target, batch.weight
        )
        return learner, metrics | sgd.current_learning_rate(learner)

    return Algorithm(init, estimate, update)
