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

# β stays within this factor of where it began: halved for long enough, as under a learning rate
# that has fallen to 0, it would be 0 for ever.
MAX_CHANGE = 2.0**10


def adapt_coefficient(coef: jax.Array, kl: jax.Array, target: jax.Array | float) -> jax.Array:
    """The weight of the penalty for the next update.

    β ← 2 β where d > 1.5 d_target,   β ← β / 2 where d < d_target / 1.5

    Args:
        coef: [...] β.
        kl: [...] d = E[KL[π_old, π_θ]] after the update, in nats.
        target: d_target.

    Returns:
        [...] β.

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
    """Another rule for the same end: a proportional controller in log space.

    β ← β (1 + clip(d / d_target − 1, −0.2, 0.2) n / h)

    Args:
        coef: [...] β.
        kl: [...] d, in nats.
        target: d_target.
        horizon: h, in samples.
        samples: n, taken since the last change.

    Returns:
        [...] β.

    Source: Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, section 2.2,
    with n / h in the place of their constant gain, as in their code.
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return coef * (1.0 + error * samples / horizon)


def make_loss(policy: Any, config: Config, coef: jax.Array | float) -> LossFn:
    """The loss of one minibatch.

    L(θ) = E[ −ρ Â + β KL[π_old, π_θ] + c_v ½ (V_θ − V_target)² − c_e H[π_θ] ]

    Args:
        policy: its `apply(params, obs)` gives (distribution, value).
        config: c_v, c_e.
        coef: [] β.

    Returns:
        (params, Batch [M] whose extra is π_old) -> ([], metrics)

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
            mean(losses.squared_error(new.value, rows.target)),
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
    """PPO-KL as three functions; β is the `extra` of its LearnerState.

    Args:
        policy: a Policy.
        config: Config.
        optimizer: another optax transformation than the one the config describes.

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
        # Not stored by the rollout: the parameters it acted by are still those of the learner.
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
