"""Proximal policy optimisation with a KL penalty, fixed or adaptive (Schulman et al. 2017)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ppo_jax import losses, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.algorithms.configs import PPOKL as Config
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

# β stays within this factor of its initial value. Otherwise it would be halved to 0, for example
# once the learning rate has decayed to 0, and could never grow again.
MAX_CHANGE = 2.0**10


def adapt_coefficient(coef: jax.Array, kl: jax.Array, target: jax.Array | float) -> jax.Array:
    """Adapt the coefficient of the KL penalty for the next update.

    β ← 2 β if d > 1.5 d_target,   β ← β / 2 if d < d_target / 1.5

    Args:
        coef: [...] coefficient β.
        kl: [...] divergence d = E[KL[π_old, π_θ]] after the update, in nats.
        target: target d_target, in nats.

    Returns:
        [...] coefficient β of the next update.

    Source: Schulman et al. 2017, section 4.
    """
    factor = jnp.where(kl > 1.5 * target, 2.0, jnp.where(kl < target / 1.5, 0.5, 1.0))
    return coef * factor.astype(jnp.result_type(coef))


def proportional_coefficient(
    coef: jax.Array,
    kl: jax.Array,
    target: jax.Array | float,
    *,
    horizon: jax.Array | float,
    samples: jax.Array | float,
) -> jax.Array:
    """Adapt the coefficient of a KL penalty with a proportional controller in log space.

    β ← β (1 + clip(d / d_target − 1, −0.2, 0.2) n / h)

    Args:
        coef: [...] coefficient β.
        kl: [...] divergence d, in nats.
        target: target d_target, in nats.
        horizon: horizon h of the controller, in samples.
        samples: number n of samples since the last adaptation.

    Returns:
        [...] coefficient β of the next update.

    Source: Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, section 2.2,
    with n / h in place of their constant gain, as in their code.
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return coef * (1.0 + error * samples / horizon)


def make_loss(policy: Any, config: Config, coef: jax.Array | float) -> LossFn:
    """The loss of one minibatch.

    L(θ) = E[ −ρ Â + β KL[π_old, π_θ] + c_v ½ (V_θ − V_target)² − c_e H[π_θ] ]

    Args:
        policy: policy whose `apply(params, obs)` returns (distribution, value).
        config: Config with the coefficients c_v and c_e.
        coef: [] coefficient β of the KL penalty.

    Returns:
        Function (params, Batch with leaves [M, ...] and extra π_old) -> (loss [], metrics).

    Source: Schulman et al. 2017, eq. 8.
    """

    def loss_fn(params: Params, rows: Batch) -> tuple[jax.Array, Metrics]:
        rows = losses.mask(rows)
        new = losses.predict(policy, params, rows)

        def mean(x: jax.Array) -> jax.Array:
            return losses.mean(x, rows.weight)

        advantage = rows.advantage
        if config.normalize_advantage:
            advantage = losses.normalize(advantage, rows.weight)
        kl = mean(rows.extra.kl(new.dist))
        loss, metrics = losses.total(
            mean(losses.surrogate(new.log_prob, rows.log_prob, advantage)) + coef * kl,
            mean(losses.value_error(new.value, rows.target)),
            mean(new.entropy),
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
        )
        return loss, metrics | {
            "kl": kl,
            "approx_kl": mean(losses.approx_kl(new.log_prob, rows.log_prob)),
        }

    return loss_fn


def make(
    policy: Any, config: Config, optimizer: optax.GradientTransformation | None = None
) -> Algorithm:
    """PPO with a KL penalty as three functions; `extra` of its LearnerState holds β.

    Args:
        policy: policy, a Policy.
        config: hyperparameters, a Config.
        optimizer: optax transformation that replaces the configured optimiser.

    Source: Schulman et al. 2017, section 4.
    """
    optimizer, begin, end = sgd.from_config(config, optimizer)

    def init(key: jax.Array, obs: PyTree) -> LearnerState:
        coef = jnp.asarray(config.kl_coef, jnp.float32)
        return sgd.init(policy.init(key, obs), optimizer, extra=coef)

    def estimate(trajectory: Trajectory) -> Batch:
        return estimate_gae(trajectory, gamma=config.gamma, lambda_=config.gae_lambda)

    def update(key: jax.Array, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        coef = learner.extra
        learner, now = begin(learner, batch.weight.size)
        # π_old is computed rather than stored: the learner still has the behaviour parameters.
        old = policy.apply(learner.params, losses.mask(batch).obs)[0]
        learner, metrics = sgd.sgd_epochs(
            learner,
            dataclasses.replace(batch, extra=old),
            make_loss(policy, now, coef),
            optimizer,
            order=sgd.shuffles(key, batch.weight.shape[0], config.epochs),
            minibatches=config.minibatches,
        )
        new = policy.apply(learner.params, losses.mask(batch).obs)[0]
        metrics |= {"kl": losses.mean(old.kl(new), batch.weight), "kl_coef": coef}
        if config.kl_target is not None:
            adapted = adapt_coefficient(coef, metrics["kl"], config.kl_target)
            start = jnp.asarray(config.kl_coef, coef.dtype)
            bounded = jnp.clip(adapted, start / MAX_CHANGE, start * MAX_CHANGE)
            learner = dataclasses.replace(learner, extra=bounded)
        return end(learner, batch, now, metrics)

    return Algorithm(init, estimate, update)
