"""Values and targets of a Q-function that include the entropy of the policy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ppo_jax.advantages import estimate_gae
from ppo_jax.distributions import TanhGaussian
from ppo_jax.types import Batch, Params, Trajectory
from ppo_jax.value_distributions import value_of


def on_unit_box(dist: Any) -> Any:
    """The distribution of the actions scaled to [−1, 1], if they are bounded by squashing.

    The entropy, and with it its target and its share of the return, then does not depend on the
    unit of the actions.
    """
    if not isinstance(dist, TanhGaussian):
        return dist
    one = jnp.ones_like(dist.mean)
    return dataclasses.replace(dist, low=-one, high=one)


def entropy_bonus(params: Params, dist: Any, action: jax.Array) -> jax.Array:
    """−α log π(a|s), whose expectation is α times the entropy.

    Args:
        params: parameters, whose entry `multipliers` has log α.
        dist: distribution π(·|s) with batch shape [...].
        action: [..., D] actions a.

    Returns:
        [...] bonuses.
    """
    return -jnp.exp(params["multipliers"]["entropy"]) * on_unit_box(dist).log_prob(action)


def with_entropy(collect: Any) -> Any:
    """Collection of a trajectory whose values are q(s, a) − α log π(a|s).

    Args:
        collect: rollout.Collector, a dataclass with the policy.

    Returns:
        Function (key, params, RolloutState) -> (RolloutState, Trajectory). The Trajectory has the
        values of `soft_targets`, and in `extra` the bonuses of the executed actions.
    """
    policy = collect.policy

    def apply(params: Params, inputs: Any) -> tuple[Any, jax.Array]:
        dist, value = policy.apply(params, inputs)
        return dist, value_of(value) + entropy_bonus(params, dist, inputs.action)

    soft = dataclasses.replace(collect, policy=policy._replace(apply=apply))

    def collected(key: jax.Array, params: Params, state: Any) -> tuple[Any, Trajectory]:
        state, trajectory = soft(key, params, state)
        dist = policy.apply(params, trajectory.obs)[0]
        bonus = entropy_bonus(params, dist, trajectory.action)
        return state, dataclasses.replace(trajectory, extra=bonus)

    return collected


def soft_targets(
    trajectory: Trajectory, *, gamma: jax.Array | float, lambda_: jax.Array | float
) -> Batch:
    """TD(λ) targets of a Q-function whose rewards include the entropy.

    G_t = r_t + d_t [ (1 − λ c_t) Ṽ_{t+1} + λ c_t (G_{t+1} − α log π(a_{t+1}|s_{t+1})) ]
    Ṽ_{t+1} = q(s_{t+1}, a') − α log π(a'|s_{t+1}),   a' ~ π(·|s_{t+1}), not executed

    d_t = γ (1 − terminated_t) and c_t = 1 − done_t as in `advantages.gae`; at a time limit s_{t+1}
    is the true final state. c_t is 0 at the last step of the rollout as well.

    Args:
        trajectory: trajectory with leaves [T, N, ...], values q(s_t, a_t) − α log π(a_t|s_t), next
            values Ṽ_{t+1}, and −α log π(a_t|s_t) in `extra`.
        gamma: [] discount factor γ per step.
        lambda_: [] parameter λ of the targets.

    Returns:
        Batch with leaves [T, N, ...], target G_t, value q(s_t, a_t) and advantage G_t − value.

    Source: Voelcker et al. 2025, section 3 (the targets), with one sample a' as in the authors'
    src/jaxrl/reppo.py at 1f04f33. There the time limit is masked, here it is bootstrapped.
    """
    bonus, following = trajectory.extra, trajectory.next_value
    # F_t = G_t − α log π(a_t|s_t) is the λ-return of rewards with bonuses. As the value that the
    # recursion subtracts, Ṽ has the expectation of V and leaves the bootstrap above.
    shifted = dataclasses.replace(
        trajectory,
        reward=trajectory.reward + bonus,
        value=jnp.concatenate([following[:1], following[:-1]]),
        extra=(),
    )
    batch = estimate_gae(shifted, gamma=gamma, lambda_=lambda_)
    real = trajectory.weight > 0
    value = jnp.where(real, trajectory.value - bonus, 0.0)
    target = jnp.where(real, batch.target - bonus, 0.0)
    return dataclasses.replace(batch, value=value, target=target, advantage=target - value)
