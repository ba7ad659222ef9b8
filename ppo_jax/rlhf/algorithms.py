"""Algorithms for language models: the update of PPO, with an advantage estimate and a loss each."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ppo_jax import losses, sgd
from ppo_jax.advantages import discounted_returns, estimate_gae
from ppo_jax.algorithms import ppo
from ppo_jax.config.rlhf import Update as Config
from ppo_jax.config.rlhf import settled
from ppo_jax.config.schedules import constant, is_schedule
from ppo_jax.divergences import importance_ratio
from ppo_jax.rlhf import objective, rewards
from ppo_jax.rlhf.adam import scale_by_tensorflow_adam
from ppo_jax.rlhf.policy import LanguagePolicy
from ppo_jax.types import Algorithm, Batch, LearnerState, Metrics, Params, PyTree, Trajectory

ADAMS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "optax": optax.scale_by_adam,
    "tensorflow": scale_by_tensorflow_adam,
}


class Method(NamedTuple):
    """The properties in which the algorithms differ.

    Attributes:
        estimate: advantage estimate, (Trajectory [L, B], Config, group size) -> Batch [L, B].
        critic: whether the algorithm trains a critic.
        groups: whether it compares several responses to each prompt.
        doc: short description of the advantage estimate.
    """

    estimate: Callable[[Trajectory, Config, int], Batch]
    critic: bool
    groups: bool
    doc: str


def _estimate_ppo(trajectory: Trajectory, config: Config, group_size: int) -> Batch:
    """Generalised advantage estimates of the tokens, computed from the critic's values."""
    return estimate_gae(trajectory, gamma=config.gamma, lambda_=config.gae_lambda)


def _estimate_reinforce(trajectory: Trajectory, config: Config, group_size: int) -> Batch:
    """Reward-to-go of each token minus the mean return of all other responses.

    Â_t = G_t − mean_{j≠i} G_0^j
    """
    to_go = _returns(trajectory, config.gamma)
    baseline = to_go[0] - rewards.leave_one_out(to_go[:1])[0]
    return _batch(trajectory, to_go - baseline)


def _estimate_reinforce_pp(trajectory: Trajectory, config: Config, group_size: int) -> Batch:
    """Reward-to-go of each token, to be normalised over all tokens of the rollout.

    Source: Hu et al. 2025, REINFORCE++: Stabilizing Critic-Free Policy Optimization, section 3.
    """
    return _batch(trajectory, _returns(trajectory, config.gamma))


def _estimate_rloo(trajectory: Trajectory, config: Config, group_size: int) -> Batch:
    """Return of the response minus the mean return of the other responses to the same prompt.

    Â_t = (R_i − 1/(K−1) Σ_{j≠i} R_j) / scale,   scale = 1 by default

    Source: Ahmadian et al. 2024, Back to Basics: Revisiting REINFORCE Style Optimization, eq. 10.
    """
    returns = _returns(trajectory, config.gamma)[0].reshape(-1, group_size)
    scale = rewards.group_scale(returns, config.advantage_scale or "none")
    return _batch(trajectory, (rewards.leave_one_out(returns) / scale).reshape(1, -1))


def _estimate_grpo(trajectory: Trajectory, config: Config, group_size: int) -> Batch:
    """Return of the response minus the mean return of its group, scaled.

    Â_t = (R_i − mean R) / scale,   scale = std R + ε with GRPO

    Source: Shao et al. 2024, DeepSeekMath, section 4.1.2.
    """
    returns = _returns(trajectory, config.gamma)[0].reshape(-1, group_size)
    advantage = rewards.group_normalized(returns, config.advantage_scale or "group")
    return _batch(trajectory, advantage.reshape(1, -1))


def _returns(trajectory: Trajectory, gamma: Any) -> jax.Array:
    """[L, B] discounted reward-to-go of the generated tokens."""
    reward = jnp.where(trajectory.weight > 0, trajectory.reward, 0.0)
    discount = gamma * (1.0 - trajectory.terminated)
    return discounted_returns(reward, discount, 0.0)


def _batch(trajectory: Trajectory, advantage: jax.Array) -> Batch:
    """A batch without value targets."""
    nothing = jnp.zeros_like(trajectory.value)
    return Batch(
        obs=trajectory.obs,
        action=trajectory.action,
        log_prob=trajectory.log_prob,
        value=nothing,
        advantage=jnp.broadcast_to(advantage, nothing.shape),
        target=nothing,
        weight=trajectory.weight,
        extra=trajectory.extra,
    )


ALGORITHMS = {
    "ppo": Method(_estimate_ppo, True, False, "generalised advantage estimation with a critic"),
    "reinforce": Method(_estimate_reinforce, False, False, "the mean return as a baseline"),
    "rloo": Method(_estimate_rloo, False, True, "the mean return of the group as a baseline"),
    "grpo": Method(_estimate_grpo, False, True, "returns normalised within the group"),
    "dr_grpo": Method(_estimate_grpo, False, True, "GRPO without its two divisions"),
    "dapo": Method(_estimate_grpo, False, True, "GRPO with clip-higher and dynamic sampling"),
    "gspo": Method(_estimate_grpo, False, True, "GRPO with the ratio of whole responses"),
    "cispo": Method(_estimate_grpo, False, True, "GRPO with a bounded weight instead of clipping"),
    "reinforce_pp": Method(
        _estimate_reinforce_pp, False, False, "returns whitened over all tokens"
    ),
    "maxrl": Method(_estimate_grpo, False, True, "returns divided by the mean of the group"),
}


def make(
    name: str,
    policy: LanguagePolicy,
    config: Config,
    frozen: PyTree,
    *,
    total_updates: int,
    group_size: int = 1,
    kl_kind: str | None = None,
) -> Algorithm:
    """An algorithm as three functions.

    Args:
        name: name of the algorithm, a key of ALGORITHMS.
        policy: the language policy, with an actor and, where the algorithm needs one, a critic.
        config: hyperparameters of the update.
        frozen: arrays that no update changes; the policy's adapters are added to
            `frozen["reference"]`.
        total_updates: number of updates of the run, the horizon of learning-rate decay and
            schedules.
        group_size: number of responses to each prompt.
        kl_kind: name of the KL estimator of the loss term; None if the KL penalty is part of the
            rewards.

    Returns:
        An `Algorithm`; its `init(key, params)` starts from given parameters.

    Source: Ouyang et al. 2022 (InstructGPT), section 3.5; Schulman et al. 2017, algorithm 1.
    """
    method, config = ALGORITHMS[name], settled(config, name)
    optimizer = make_optimizer(config, method.critic)
    policy = policy.joined(frozen)
    if not (config.anneal or is_schedule(config.learning_rate)):
        config = dataclasses.replace(config, learning_rate=constant(config.learning_rate))
    begin, end = sgd.schedule_of(config, total_updates)
    schedule = (lambda learner, timesteps: begin(learner, 1), end)
    learn = ppo.make(
        policy,
        config,
        optimizer,
        penalty=kl_penalty(kl_kind),
        surrogate=objective.surrogate,
        prepare=lambda rows: objective.with_token_weights(rows, config.aggregation or "token"),
        schedule=schedule,
    ).update

    def init(key: jax.Array, params: Params) -> LearnerState:
        return sgd.init(params, optimizer)

    def estimate(trajectory: Trajectory) -> Batch:
        if config.whiten_rewards:
            reward = rewards.whiten(trajectory.reward, trajectory.weight, shift_mean=False)
            trajectory = dataclasses.replace(trajectory, reward=reward)
        batch = method.estimate(trajectory, config, group_size)
        if (
            "counts" in trajectory.extra
        ):  # after the estimate: all responses of a group are compared
            weight = batch.weight * trajectory.extra["counts"]
            batch = dataclasses.replace(batch, weight=weight)
        whiten = config.whiten_advantages
        if not (not method.groups if whiten is None else whiten):
            return batch
        return dataclasses.replace(batch, advantage=rewards.whiten(batch.advantage, batch.weight))

    def update(key: jax.Array, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        order = sgd.shuffles(key, batch.weight.shape[0], config.epochs)  # the order `learn` uses
        # One response in 16, at most eight: a forward pass over many of them would take long.
        few = max(1, min(8, order.shape[1] // 16))
        rows = jax.tree.map(lambda x: x[order[0, :few]], batch)
        gap = _first_ratio_gap(policy, learner.params, rows)
        learner, metrics = learn(key, learner, batch)
        return learner, metrics | gap

    return Algorithm(init, estimate, update)


def _first_ratio_gap(policy: LanguagePolicy, params: Params, rows: Batch) -> Metrics:
    """Largest |ratio − 1| before the first gradient step: rounding error, or else a fault."""
    rows = losses.mask(rows)
    new = losses.predict(policy, params, rows)
    gap = jnp.abs(jnp.exp(new.log_prob - rows.log_prob) - 1.0)
    return {"first_ratio_gap": jnp.max(jnp.where(rows.weight > 0, gap, 0.0))}


def kl_penalty(kind: str | None) -> ppo.Penalty | None:
    """β KL(π_θ ‖ π_ref) as a term of the loss, averaged over tokens sampled by π_old.

    L = β E_old[ρ̄ (sg(k − k2) + k2)],   ρ̄ = sg(π_θ / π_old),   k2 = ½ x²,   x = log π_θ − log π_ref

    Here sg(·) has no gradient. The value is that of the chosen estimator k. The gradient is that of
    k2 with every estimator, β E_old[ρ̄ x ∇ log π_θ] = β ∇ KL(π_θ ‖ π_ref): that of k1 would be 0 in
    expectation, and that of k3 would be ∇ KL(π_ref ‖ π_θ). The weight ρ̄ is 1 before the first
    gradient step on a rollout and keeps the gradient unbiased after it. For k3 the result is the
    gradient of ρ k3 through both factors.

    Args:
        kind: name of the KL estimator; None if the loss has no such term.

    Returns:
        A function (Prediction, rows whose `extra` has kl_coef and ref_log_prob) -> ([], metrics);
        None without a term.

    Raises:
        ValueError: kind is not the name of an estimator.

    Source: Schulman 2020 (the estimators); Tang & Munos 2025, On a Few Pitfalls in KL Divergence
    Gradient Estimation for RL (their gradients).
    """
    if kind is None:
        return None
    rewards.kl_estimate(jnp.zeros(()), jnp.zeros(()), kind)  # refuses an unknown kind at once

    def penalty(new: losses.Prediction, rows: Batch) -> tuple[jax.Array, Metrics]:
        estimate = functools.partial(rewards.kl_estimate, new.log_prob, rows.extra["ref_log_prob"])
        gradient = estimate("k2")
        kl = gradient + jax.lax.stop_gradient(estimate(kind) - gradient)
        ratio = jax.lax.stop_gradient(importance_ratio(new.log_prob, rows.log_prob))
        weight = rows.extra.get("aggregation", 1.0)
        value = losses.mean(rows.extra["kl_coef"] * ratio * kl * weight, rows.weight)
        return value, {"kl_loss": value}

    return penalty


def make_optimizer(config: Config, critic: bool = True) -> optax.GradientTransformation:
    """Adam with the learning rate of the critic, if there is one, multiplied by `critic_rate`."""
    adam = sgd.make_optimizer(
        config.max_grad_norm,
        config.adam_eps,
        learning_rate=config.learning_rate,
        adam=ADAMS[config.adam],
    )
    if config.critic_rate == 1.0 or not critic:
        return adam

    def init(params: Params) -> _TwoRates:
        return _TwoRates(*adam.init(params))

    def update(grads: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
        step, state = adam.update(grads, state, params)
        critic = jax.tree.map(lambda x: config.critic_rate * x, step["critic"])
        return {**step, "critic": critic}, state

    return optax.GradientTransformation(init, update)


class _TwoRates(sgd.OptimizerState):
    """State of an optimiser that gives actor and critic different learning rates.

    `sgd` flattens all parameters into one vector only if the state is exactly an `OptimizerState`.
    """
