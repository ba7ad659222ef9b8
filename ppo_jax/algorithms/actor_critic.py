"""Actor-critic with a Q-function as critic, q(s, a; w) (Sutton et al. 2000; Konda & Tsitsiklis)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import optax

from ppo_jax import losses, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.config.options import option
from ppo_jax.config.schedules import Scheduled
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters. Every float may be a tracer, so that one program serves a whole sweep."""

    critic: ClassVar[str] = "q"

    learning_rate: Scheduled = sgd.learning_rate(3e-3)
    actor_rate: float = option(
        0.1,
        "learning rate of the actor as a fraction of the critic's; the critic must learn faster "
        "than the actor",
        low=0,
        high=1,
    )
    anneal_timesteps: float | None = sgd.anneal_timesteps()
    gamma: float = option(0.99, "discount factor gamma per environment step", low=0, high=1)
    actor_weight: str = option(
        "q",
        "weight of the actor's score function: q for the critic's action value, td_error for its "
        "TD error",
        choices=tuple(ACTOR_WEIGHTS),
    )
    entropy_coef: Scheduled = option(0.0, "coefficient of the entropy bonus in the loss", low=0)
    value_coef: float = option(0.5, "coefficient of the critic's loss in the total loss", low=0)
    normalize_advantage: bool = option(
        True, "whether to normalise the actor's weights of each rollout to mean 0 and variance 1"
    )
    max_grad_norm: float = sgd.max_grad_norm(0.5)
    adam_eps: float = sgd.adam_eps()

    def check(self, run: Any, env: Any) -> None:
        """Reject a shared torso, a recurrent network, and rollouts of a single sample.

        Args:
            run: TrainConfig with shared_torso, memory, num_envs and num_steps.
            env: environment, not used.

        Raises:
            ValueError: if the run has one of these.
        """
        if run.shared_torso:
            raise ValueError(
                "the critic of actor_critic is a Q-function, which also reads actions and cannot "
                "share a torso with the actor; use shared_torso=False"
            )
        if run.memory != "none":
            raise ValueError(
                "the critic of actor_critic is a Q-function without recurrent state; use "
                "memory='none'"
            )
        if self.normalize_advantage:
            losses.check_normalizable(run.num_envs * run.num_steps)


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
