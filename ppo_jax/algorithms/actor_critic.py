"""Actor-critic with a Q-function as critic, q(s, a; w) (Sutton et al. 2000; Konda & Tsitsiklis)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from ppo_jax import losses, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.algorithms.configs import ActorCritic as Config
from ppo_jax.types import Algorithm, Batch, LearnerState, LossFn, Metrics, PyTree, Trajectory


def weight_by_q(value: jax.Array, target: jax.Array) -> jax.Array:
    """The policy-gradient theorem with the critic's q in place of Q^π:  ψ_t = q(s_t, a_t).

    Args:
        value: [...] action values q(s_t, a_t).
        target: [...] targets r_t + γ q(s_{t+1}, a').

    Returns:
        [...] weights ψ_t of the score function.

    Source: Sutton et al. 2000, Policy Gradient Methods, theorem 1.
    """
    return value


def weight_by_td_error(value: jax.Array, target: jax.Array) -> jax.Array:
    """The TD error of the Q-function as advantage:  ψ_t = −δ_t.

    Given (s, a), its expectation vanishes once q = Q^π. The actor then receives no further signal:
    it only learns while the critic has errors.

    Args:
        value: [...] action values q(s_t, a_t).
        target: [...] targets r_t + γ q(s_{t+1}, a').

    Returns:
        [...] weights ψ_t of the score function.

    Source: Sutton & Barto 2018, section 13.5, with q in place of V.
    """
    return target - value


ACTOR_WEIGHTS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "q": weight_by_q,
    "td_error": weight_by_td_error,
}


def make_loss(policy: Any, config: Config) -> LossFn:
    """The loss of one rollout.

    δ_t = q(s_t, a_t; w) − (r_t + γ q(s_{t+1}, a'_{t+1})),   a'_{t+1} ~ π(·|s_{t+1}), not executed
    L(θ, w) = E[ −log π_θ(a_t|s_t) ψ_t + c_v ½ δ_t² − c_e H[π_θ] ]

    Args:
        policy: policy whose `apply(params, StateAction)` returns (distribution, q).
        config: Config with the coefficients c_v and c_e.

    Returns:
        Function (params, Batch with leaves [M, ...] and advantage ψ) -> (loss [], metrics).

    Source: Sutton & Barto 2018, sections 10.1 (the critic: semi-gradient Sarsa) and 13.5.
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
    """The actor-critic with a Q-function as three functions: one gradient step on each rollout.

    Args:
        policy: policy whose critic is "q".
        config: hyperparameters, a Config.
        optimizer: optax transformation that replaces the configured optimiser.

    Source: Sutton et al. 2000; Konda & Tsitsiklis 2000, Actor-Critic Algorithms.
    """
    if policy.critic != "q":
        raise ValueError(
            f"actor_critic requires critic 'q', but the critic of the policy is {policy.critic!r}"
        )
    optimizer, begin, end = sgd.from_config(config, optimizer)

    def init(key: jax.Array, obs: PyTree) -> LearnerState:
        return sgd.init(policy.init(key, obs), optimizer)

    def estimate(trajectory: Trajectory) -> Batch:
        # With λ = 0 the target is the one-step target r + γ q(s', a').
        batch = estimate_gae(trajectory, gamma=config.gamma, lambda_=0.0)
        weights = ACTOR_WEIGHTS[config.actor_weight](batch.value, batch.target)
        return dataclasses.replace(batch, advantage=weights)

    def update(key: jax.Array, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        learner, now = begin(learner, batch.weight.size)
        before = learner.params["actor"]
        learner, metrics = sgd.sgd_step(learner, batch, make_loss(policy, now), optimizer)
        actor = optax.incremental_update(learner.params["actor"], before, config.actor_rate)
        learner = dataclasses.replace(learner, params={**learner.params, "actor": actor})
        return end(learner, batch, now, metrics)

    return Algorithm(init, estimate, update)
