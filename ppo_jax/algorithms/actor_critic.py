"""Actor-critic whose critic judges actions: q(s, a; w) (Sutton et al. 2000; Konda & Tsitsiklis)."""

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
    """The policy-gradient theorem, with the critic's q for Q^π:  ψ_t = q(s_t, a_t).

    Args:
        value: [...] q(s_t, a_t).
        target: [...] r_t + γ q(s_{t+1}, a').

    Source: Sutton et al. 2000, Policy Gradient Methods, theorem 1.
    """
    return value


def weight_by_td_error(value: jax.Array, target: jax.Array) -> jax.Array:
    """How much better it went than the critic thought:  ψ_t = −δ_t.

    Its mean over what follows (s, a) is 0 once q = Q^π: this actor learns from the errors of its
    critic alone, and only for as long as there are any.

    Args:
        value: [...] q(s_t, a_t).
        target: [...] r_t + γ q(s_{t+1}, a').

    Source: Sutton & Barto 2018, section 13.5, with q in the place of V.
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
        policy: its `apply(params, StateAction)` gives (distribution, q).
        config: c_v, c_e.

    Returns:
        (params, Batch [M] whose advantage is ψ) -> ([], metrics)

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
    """The Q actor-critic as three functions: one gradient step on each rollout.

    Args:
        policy: a Policy whose critic is "q".
        config: Config.
        optimizer: another optax transformation than the one the config describes.

    Source: Sutton et al. 2000; Konda & Tsitsiklis 2000, Actor-Critic Algorithms.
    """
    if policy.critic != "q":
        raise ValueError(
            f"actor_critic needs a critic 'q'; that of this policy is {policy.critic!r}"
        )
    optimizer, begin, end = sgd.from_config(config, optimizer)

    def init(key: jax.Array, obs: PyTree) -> LearnerState:
        return sgd.init(policy.init(key, obs), optimizer)

    def estimate(trajectory: Trajectory) -> Batch:
        # At λ = 0 the target is r + γ q(s', a'), and no further look ahead.
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
