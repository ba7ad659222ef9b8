"""Proximal policy optimisation with the clipped surrogate (Schulman et al. 2017)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ppo_jax import losses, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.algorithms.configs import PPO as Config
from ppo_jax.optimizer import Begin, End
from ppo_jax.types import (
    Algorithm,
    Batch,
    LearnerState,
    LossFn,
    Metrics,
    Params,
    PyTree,
    Trajectory,
)

# Function (Prediction of the samples, samples) -> (term added to the loss [], metrics).
Penalty = Callable[[losses.Prediction, Batch], tuple[jax.Array, Metrics]]
# Function (Prediction, samples, Config) -> (losses of the policy [M, ...], metrics to be averaged
# over the samples, [M, ...]).
Surrogate = Callable[[losses.Prediction, Batch, Any], tuple[jax.Array, Metrics]]


def clipped_surrogate(
    new: losses.Prediction, rows: Batch, config: Config
) -> tuple[jax.Array, Metrics]:
    """The clipped surrogate of each sample, and whether its ratio is outside the clip range.

    Args:
        new: prediction for M samples, from `losses.predict`.
        rows: Batch with leaves [M, ...] and the advantages that are used.
        config: Config with the clip range.

    Returns:
        (losses [M, ...], {"clip_fraction": [M, ...]}).
    """
    surrogate = losses.clipped_surrogate(
        new.log_prob, rows.log_prob, rows.advantage, config.clip_eps
    )
    ratio = jnp.exp(new.log_prob - rows.log_prob)
    return surrogate, {"clip_fraction": jnp.abs(ratio - 1.0) > config.clip_eps}


def make_loss(
    policy: Any,
    config: Config,
    penalty: Penalty | None = None,
    surrogate: Surrogate = clipped_surrogate,
) -> LossFn:
    """The loss of one minibatch.

    L(θ) = E[ −min(ρ Â, clip(ρ, 1−ε, 1+ε) Â) + c_v ½ (V_θ − V_target)² − c_e H[π_θ] ] + penalty

    Args:
        policy: policy whose `apply(params, obs)` returns (distribution, value).
        config: Config with ε, c_v, c_e, the value clip range and the normalisation of advantages.
        penalty: function (Prediction, samples) -> ([], metrics) of a further term, or None.
        surrogate: function (Prediction, samples, config) -> (losses [M, ...], metrics of each
            sample) of the first term.

    Returns:
        Function (params, Batch with leaves [M, ...]) -> (loss [], metrics).

    Source: Schulman et al. 2017, eq. 9.
    """

    def loss_fn(params: Params, rows: Batch) -> tuple[jax.Array, Metrics]:
        rows = losses.mask(rows)
        new = losses.predict(policy, params, rows)
        loss, metrics = _objective(new, rows, config, surrogate)
        if penalty is None:
            return loss, metrics
        more, its_metrics = penalty(new, rows)
        return loss + more, metrics | its_metrics | {"loss": loss + more}

    return loss_fn


def _objective(
    new: losses.Prediction, rows: Batch, config: Config, surrogate: Surrogate
) -> tuple[jax.Array, Metrics]:
    """The loss of `make_loss` without the penalty, from the prediction of the policy.

    Args:
        new: prediction for M samples, from `losses.predict`.
        rows: Batch with leaves [M, ...], prepared by `losses.mask`.
        config: Config as for `make_loss`.
        surrogate: function of the first term, as for `make_loss`.

    Returns:
        (loss [], metrics).
    """
    if config.normalize_advantage:
        advantage = losses.normalize(rows.advantage, rows.weight)
        rows = dataclasses.replace(rows, advantage=advantage)
    policy_losses, averaged = surrogate(new, rows, config)
    mean = losses.means(
        rows.weight,
        policy=policy_losses,
        value=_value_error(new.value, rows, config.value_clip_eps),
        entropy=new.entropy,
        approx_kl=losses.approx_kl(new.log_prob, rows.log_prob),
        **averaged,
    )
    loss, metrics = losses.total(
        mean["policy"],
        mean["value"],
        mean["entropy"],
        value_coef=config.value_coef,
        entropy_coef=config.entropy_coef,
    )
    return loss, metrics | {name: mean[name] for name in ("approx_kl", *averaged)}


def _value_error(value: jax.Array, rows: Batch, clip_eps: jax.Array | float | None) -> jax.Array:
    if clip_eps is None:
        return losses.squared_error(value, rows.target)
    return losses.clipped_squared_error(value, rows.value, rows.target, clip_eps)


def make(
    policy: Any,
    config: Config,
    optimizer: optax.GradientTransformation | None = None,
    *,
    penalty: Penalty | None = None,
    surrogate: Surrogate = clipped_surrogate,
    prepare: Callable[[Batch], Batch] = lambda rows: rows,
    schedule: tuple[Begin, End] | None = None,
) -> Algorithm:
    """PPO with the clipped surrogate as three functions.

    Args:
        policy: policy, a Policy.
        config: hyperparameters, a Config.
        optimizer: optax transformation that replaces the configured optimiser.
        penalty: function of a further term of the loss, as for `make_loss`.
        surrogate: function of the first term of the loss, as for `make_loss`.
        prepare: function applied to the samples of each minibatch, as for `sgd.sgd_epochs`.
        schedule: functions (begin, end) of an update that replace those of `sgd.from_config`.

    Source: Schulman et al. 2017, algorithm 1.
    """
    if schedule is None:
        optimizer, begin, end = sgd.from_config(config, optimizer)
    else:
        begin, end = schedule
    stop = None
    if config.target_kl is not None:
        limit = 1.5 * config.target_kl

        def stop(metrics: Metrics) -> jax.Array:
            return metrics["approx_kl"] > limit

    def init(key: jax.Array, obs: PyTree) -> LearnerState:
        return sgd.init(policy.init(key, obs), optimizer)

    def estimate(trajectory: Trajectory) -> Batch:
        return estimate_gae(trajectory, gamma=config.gamma, lambda_=config.gae_lambda)

    def update(key: jax.Array, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        learner, now = begin(learner, batch.weight.size)
        learner, metrics = sgd.sgd_epochs(
            learner,
            batch,
            make_loss(policy, now, penalty, surrogate),
            optimizer,
            order=sgd.shuffles(key, batch.weight.shape[0], config.epochs),
            minibatches=config.minibatches,
            micro_batches=config.micro_batches,
            stop=stop,
            prepare=prepare,
        )
        return end(learner, batch, now, metrics)

    return Algorithm(init, estimate, update)
