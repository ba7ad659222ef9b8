"""Advantages and returns: estimates of how much better an action was than the policy's average.

All functions recurse backwards over the leading time axis and accept any trailing shape.
"""

import jax
import jax.numpy as jnp

from ppo_jax import shapes
from ppo_jax.types import Batch, Trajectory


def gae(
    reward: jax.Array,
    discount: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    cont: jax.Array,
    lambda_: jax.Array | float,
) -> jax.Array:
    """Generalised advantage estimation.

    δ_t = r_t + d_t V(s_{t+1}) − V(s_t)
    Â_t = δ_t + d_t λ c_t Â_{t+1},   Â_T = 0

    An episode ends by termination or by truncation (a time limit), so there are two masks.
    d_t = γ (1 − terminated_t) removes the bootstrap value where the episode terminated, and
    c_t = 1 − done_t stops the recursion at the border between two episodes. A truncation stops the
    recursion and keeps the bootstrap value.

    Args:
        reward: [T, ...] rewards r_t received after step t.
        discount: [T, ...] discounts d_t = γ (1 − terminated_t).
        value: [T, ...] value estimates V(s_t).
        next_value: [T, ...] value estimates V(s_{t+1}) of the true successor states.
        cont: [T, ...] continuation masks c_t = 1 − done_t.
        lambda_: [] or [T, ...] GAE parameter λ; 0 gives the one-step TD error, 1 gives the
            Monte-Carlo return minus V(s_t).

    Returns:
        [T, ...] advantages. The λ-return, the usual value target, is advantage + value.

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Schulman et al. 2016, High-Dimensional Continuous Control Using GAE, eqs. 11-16.
    """
    delta = _residual(
        "gae",
        reward=reward,
        discount=discount,
        value=value,
        next_value=next_value,
        cont=cont,
        lambda_=lambda_,
    )
    return _discounted_sum(delta, discount * lambda_ * cont, 0.0)


def k_step_advantages(
    reward: jax.Array,
    discount: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    cont: jax.Array,
    steps: int,
) -> jax.Array:
    """Advantages estimated from 1, 2, ..., K rewards before they bootstrap from the critic.

    Â_t^(k) = r_t + γ r_{t+1} + ... + γ^{k−1} r_{t+k−1} + γ^k V(s_{t+k}) − V(s_t)
            = Σ_{l<k} γ^l δ_{t+l},   or  Â_t^(k) = δ_t + d_t c_t Â_{t+1}^(k−1)

    A sum is cut off at the end of the episode and at the end of the rollout.

    Args:
        reward, discount, value, next_value, cont: [T, ...] arrays, as for `gae`.
        steps: number K of estimates.

    Returns:
        [K, T, ...] advantages with Â^(k) at index k − 1. k = 1 is the one-step TD error; K = T is
        the Monte-Carlo return minus V(s_t).

    Raises:
        ValueError: if the arrays have different shapes; only scalars are broadcast.

    Source: Schulman et al. 2016, eqs. 11-15.
    """
    delta = _residual(
        "k_step_advantages",
        reward=reward,
        discount=discount,
        value=value,
        next_value=next_value,
        cont=cont,
    )
    decay = discount * cont

    def longer(advantage: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        following = jnp.roll(advantage, -1, axis=0).at[-1].set(0.0)
        advantage = delta + decay * following
        return advantage, advantage

    return jax.lax.scan(longer, jnp.zeros_like(delta), None, length=steps)[1]


def exponential_average(advantage: jax.Array, lambda_: jax.Array | float) -> jax.Array:
    """The exponential average of k-step advantages, which equals `gae` if K is at least T.

    Â_t = (1 − λ) (Â_t^(1) + λ Â_t^(2) + λ² Â_t^(3) + ...)

    The K-th advantage also stands for all longer ones, and has their total weight λ^{K−1}.

    Args:
        advantage: [K, T, ...] advantages from `k_step_advantages`.
        lambda_: [] GAE parameter λ.

    Returns:
        [T, ...] advantages.

    Raises:
        ValueError: if the advantages have no time axis after the first axis, or λ is not a scalar.

    Source: Schulman et al. 2016, eq. 16.
    """
    shapes.time_axis("exponential_average", jnp.shape(advantage)[1:])
    shapes.exact("exponential_average", (), "a number", lambda_=lambda_)
    power = jnp.asarray(lambda_) ** jnp.arange(advantage.shape[0])
    share = (power * (1.0 - lambda_)).at[-1].set(power[-1])
    return jnp.tensordot(share.astype(advantage.dtype), advantage, axes=1)


def discounted_returns(
    reward: jax.Array, discount: jax.Array, last_value: jax.Array | float
) -> jax.Array:
    """Discounted returns (reward-to-go).

    G_t = r_t + d_t G_{t+1},   G_T = last_value

    Args:
        reward: [T, ...] rewards r_t.
        discount: [T, ...] discounts d_t, 0 where the episode ends at t.
        last_value: [...] value of the state after the last step; 0 if nothing follows.

    Returns:
        [T, ...] returns G_t.

    Raises:
        ValueError: if the discount or the last value has another shape; only scalars are
            broadcast.

    Source: Sutton & Barto 2018, Reinforcement Learning, eq. 3.9.
    """
    shapes.time_axis("discounted_returns", jnp.shape(reward))
    shapes.same("discounted_returns", reward=reward, discount=discount)
    if jnp.shape(last_value) != ():
        shapes.exact("discounted_returns", reward.shape[1:], "one step", last_value=last_value)
    return _discounted_sum(reward, discount, last_value)


def estimate_gae(
    trajectory: Trajectory, *, gamma: jax.Array | float, lambda_: jax.Array | float
) -> Batch:
    """Compute GAE advantages and λ-return targets for a trajectory.

    Steps of weight 0 (padding, or the dummy step of a host environment) are skipped: advantages
    and next values pass through them unchanged and undiscounted, and their contents are ignored.

    Args:
        trajectory: trajectory with leaves [T, N, ...].
        gamma: [] discount factor γ per step.
        lambda_: [] GAE parameter λ.

    Returns:
        Batch with leaves [T, N, ...], advantage Â_t and target Â_t + V(s_t). A step of weight 0
        holds the advantage that it passes on, and the target 0.

    Raises:
        ValueError: if the leaves of the trajectory have different shapes.

    Source: Schulman et al. 2016, eqs. 11-16.
    """
    _check_leaves(trajectory, gamma, lambda_)
    real = trajectory.weight > 0
    alive = real & ~trajectory.terminated.astype(bool)
    advantage = gae(
        reward=jnp.where(real, trajectory.reward, 0.0),
        discount=jnp.where(real, gamma * (1.0 - trajectory.terminated), 1.0),
        value=jnp.where(real, trajectory.value, 0.0),
        # `where`, not a product with 0: the ignored values may be infinite.
        next_value=jnp.where(alive, _successor_value(trajectory, real), 0.0),
        cont=jnp.where(real, 1.0 - trajectory.done, 1.0),
        lambda_=jnp.where(real, lambda_, 1.0),
    )
    target = jnp.where(real, advantage + trajectory.value, 0.0)
    return _batch(trajectory, advantage, target)


def estimate_returns(trajectory: Trajectory, *, gamma: jax.Array | float) -> Batch:
    """Compute bootstrapped returns as targets, and Monte-Carlo advantages, for a trajectory.

    G_t = r_t + γ (1 − terminated_t) (G_{t+1} if the episode goes on, else V(s_{t+1}))
    Â_t = G_t − V(s_t)

    This is GAE with λ = 1: the return sums the rewards up to the end of the episode or of the
    rollout, and bootstraps from V there unless the episode terminated.

    Args:
        trajectory: trajectory with leaves [T, N, ...].
        gamma: [] discount factor γ per step.

    Returns:
        Batch with leaves [T, N, ...], target G_t and advantage G_t − V(s_t).

    Raises:
        ValueError: if the leaves of the trajectory have different shapes.

    Source: Sutton & Barto 2018, section 13.4 (REINFORCE with baseline).
    """
    return estimate_gae(trajectory, gamma=gamma, lambda_=1.0)


def _residual(
    function: str,
    *,
    reward: jax.Array,
    discount: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    **others: jax.Array | float,
) -> jax.Array:
    """δ_t = r_t + d_t V(s_{t+1}) − V(s_t), with the common shape of all arguments."""
    terms = {"reward": reward, "discount": discount, "value": value, "next_value": next_value}
    shape = shapes.same(function, **terms, **others)
    shapes.time_axis(function, shape)
    return jnp.broadcast_to(reward + discount * next_value - value, shape)


def _check_leaves(
    trajectory: Trajectory, gamma: jax.Array | float, lambda_: jax.Array | float
) -> None:
    names = ("log_prob", "value", "next_value", "reward", "terminated", "done")
    leaves = {name: getattr(trajectory, name) for name in names}
    shapes.time_axis("estimate_gae", jnp.shape(trajectory.weight))
    shapes.same("estimate_gae", weight=trajectory.weight, **leaves, gamma=gamma, lambda_=lambda_)


def _discounted_sum(x: jax.Array, decay: jax.Array, last: jax.Array | float) -> jax.Array:
    """y_t = x_t + decay_t y_{t+1} with y_T = last, over the leading axis."""
    dtype = jnp.result_type(x, decay, last, jnp.float32)
    x, decay = x.astype(dtype), jnp.broadcast_to(decay, x.shape).astype(dtype)

    def step(following, x_and_decay):
        current = x_and_decay[0] + x_and_decay[1] * following
        return current, current

    start = jnp.broadcast_to(last, x.shape[1:]).astype(dtype)
    # Latency limits this loop: an iteration of eight steps takes little longer than one of one.
    return jax.lax.scan(step, start, (x, decay), reverse=True, unroll=8)[1]


def _successor_value(trajectory: Trajectory, real: jax.Array) -> jax.Array:
    """next_value with steps of weight 0 skipped: V of the next state of positive weight.

    If the last steps have weight 0, that state is the final state of the rollout. Its value is
    next_value of the last step, whatever the weight of that step.
    """
    dtype = jnp.result_type(trajectory.value, trajectory.next_value)
    value, next_value = trajectory.value.astype(dtype), trajectory.next_value.astype(dtype)

    def skip():
        follower_is_real = jnp.roll(real, -1, axis=0).at[-1].set(True)
        given = (trajectory.done.astype(bool) & real) | follower_is_real

        def step(value_after, row):
            given, next_value, real, value = row
            successor = jnp.where(given, next_value, value_after)
            return jnp.where(real, value, value_after), successor

        return jax.lax.scan(step, next_value[-1], (given, next_value, real, value), reverse=True)[1]

    return jax.lax.cond(jnp.all(real), lambda: next_value, skip)


def _batch(trajectory: Trajectory, advantage: jax.Array, target: jax.Array) -> Batch:
    return Batch(
        obs=trajectory.obs,
        action=trajectory.action,
        log_prob=trajectory.log_prob,
        value=trajectory.value,
        advantage=advantage,
        target=target,
        weight=trajectory.weight,
        extra=trajectory.extra,
    )
