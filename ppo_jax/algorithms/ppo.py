"""Proximal policy optimisation with the clipped surrogate (Schulman et al. 2017)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ppo_jax import losses, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.algorithms import ewma, rpo
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


def surrogate_losses(
    new: losses.Prediction, rows: Batch, config: Config
) -> tuple[jax.Array, Metrics]:
    """The loss of the policy for each sample, and whether its ratio is outside the clip range.

    Args:
        new: prediction for M samples, from `losses.predict`.
        rows: Batch with leaves [M, ...] and the advantages that are used. With the config's
            proximal_decay, `extra` is log π_prox.
        config: Config with the objective, the clip range and proximal_decay.

    Returns:
        (losses [M, ...], {"clip_fraction": [M, ...]}).
    """
    advantage, centre = rows.advantage, rows.log_prob
    if config.proximal_decay is not None:
        advantage, centre = ewma.decoupled(advantage, rows.log_prob, rows.extra)
    ratio = jnp.exp(new.log_prob - centre)
    outside = jnp.abs(ratio - 1.0) > config.clip_eps
    return of_objective(new.log_prob, centre, advantage, config), {"clip_fraction": outside}


def make_loss(
    policy: Any,
    config: Config,
    penalty: Penalty | None = None,
    surrogate: Surrogate = surrogate_losses,
) -> LossFn:
    """The loss of one minibatch.

    L(θ) = E[ −min(ρ Â, clip(ρ, 1−ε, 1+ε) Â) + c_v ½ (V_θ − V_target)² − c_e H[π_θ] ] + penalty

    Args:
        policy: policy whose `apply(params, obs)` returns (distribution, value).
        config: Config with ε, c_v, c_e, the objective, the value clip range and the normalisation
            of advantages. With its proximal_decay, `extra` of the samples is log π_prox.
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
        if config.rpo_alpha is not None:
            rpo.require_gaussian(new.dist)
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


def of_objective(
    log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, config: Any
) -> jax.Array:
    """[...] losses of the chosen objective: that of PPO, of SPO, or the discovered one.

    Args:
        log_prob: [...] log π_θ(a|s).
        old_log_prob: [...] log-probabilities of the policy that the objective stays close to.
        advantage: [...] advantages Â.
        config: Config with objective and clip_eps.
    """
    if config.objective == "discovered":
        return losses.discovered_surrogate(log_prob, old_log_prob, advantage)
    simple = config.objective == "simple"
    surrogate = losses.simple_surrogate if simple else losses.clipped_surrogate
    return surrogate(log_prob, old_log_prob, advantage, config.clip_eps)


def _value_error(value: Any, rows: Batch, clip_eps: jax.Array | float | None) -> jax.Array:
    if clip_eps is None:
        return losses.value_error(value, rows.target)
    return losses.clipped_squared_error(value, rows.value, rows.target, clip_eps)


def _preparation(
    policy: Any, config: Config, key: jax.Array, change: Callable[[Batch], Batch] | None = None
) -> sgd.Prepare | None:
    """What each gradient step needs besides its samples: the lagged policy, noise, a change of the
    samples, or nothing."""
    if config.proximal_decay is None and config.rpo_alpha is None and change is None:
        return None

    def prepare(learner: LearnerState, rows: Batch) -> tuple[PyTree, Batch]:
        extra = learner.extra
        if config.proximal_decay is not None:
            extra = ewma.advance(extra, learner.params, config.proximal_decay)
            proximal = ewma.proximal_log_prob(policy, extra, rows)
            rows = dataclasses.replace(rows, extra=proximal)
        if config.rpo_alpha is not None:
            key_of_step = jax.random.fold_in(key, learner.step)
            rows = rpo.perturbed(key_of_step, rows, config.rpo_alpha)
        return extra, rows if change is None else change(rows)

    return prepare


def make(
    policy: Any,
    config: Config,
    optimizer: optax.GradientTransformation | None = None,
    *,
    penalty: Penalty | None = None,
    surrogate: Surrogate = surrogate_losses,
    prepare: Callable[[Batch], Batch] | None = None,
    schedule: tuple[Begin, End] | None = None,
) -> Algorithm:
    """PPO with the clipped surrogate as three functions; `extra` of its LearnerState is the lagged
    policy of PPO-EWMA, if there is one.

    Args:
        policy: policy, a Policy.
        config: hyperparameters, a Config.
        optimizer: optax transformation that replaces the configured optimiser.
        penalty: function of a further term of the loss, as for `make_loss`.
        surrogate: function of the first term of the loss, as for `make_loss`.
        prepare: function applied to the samples of each minibatch before they are divided into
            parts, for numbers that depend on the whole minibatch; None for no change.
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
        params = policy.init(key, obs)
        lagged = () if config.proximal_decay is None else ewma.start(params)
        return sgd.init(params, optimizer, extra=lagged)

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
            prepare=_preparation(policy, now, key, prepare),
        )
        return end(learner, batch, now, metrics)

    return Algorithm(init, estimate, update)
