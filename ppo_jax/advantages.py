"""Advantages and returns: how much better an action was than the policy's average.

All functions run backwards over the leading time axis and work on any trailing shape.
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

    Two masks, because an episode can end in two ways: d_t = γ (1 − terminated_t) stops the
    bootstrap where there is no future, c_t = 1 − done_t stops the recursion where the next row is
    another episode. A time limit only does the latter.

    Args:
        reward: [T, ...] r_t, received after step t.
        discount: [T, ...] d_t = γ (1 − terminated_t).
        value: [T, ...] V(s_t).
        next_value: [T, ...] V(s_{t+1}) of the true successor.
        cont: [T, ...] c_t = 1 − done_t.
        lambda_: [] or [T, ...]; 0 gives the one-step TD residual, 1 Monte Carlo minus V.

    Returns:
        [T, ...] advantages; the λ-return, the usual value target, is advantage + value.

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

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
    """The advantages that look 1, 2, ..., K steps ahead before they trust the critic.

    Â_t^(k) = r_t + γ r_{t+1} + ... + γ^{k−1} r_{t+k−1} + γ^k V(s_{t+k}) − V(s_t)
            = Σ_{l<k} γ^l δ_{t+l},   or  Â_t^(k) = δ_t + d_t c_t Â_{t+1}^(k−1)

    A sum that would pass the end of the episode or of the rollout stops there.

    Args:
        reward, discount, value, next_value, cont: [T, ...], as for `gae`.
        steps: K.

    Returns:
        [K, T, ...], Â^(k) at k − 1; k = 1 is the TD residual, K = T Monte Carlo minus V.

    Raises:
        ValueError: arrays of different shapes; only scalars are broadcast.

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
    """The mixture of k-step advantages that is `gae`, once K is as long as the rollout.

    Â_t = (1 − λ) (Â_t^(1) + λ Â_t^(2) + λ² Â_t^(3) + ...)

    The K-th stands for all longer ones too, with their weight λ^{K−1} in all.

    Args:
        advantage: [K, T, ...] of `k_step_advantages`.
        lambda_: [] λ.

    Returns:
        [T, ...].

    Raises:
        ValueError: no axis of steps behind that of K, or several λ.

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
    """Discounted reward-to-go.

    G_t = r_t + d_t G_{t+1},   G_T = last_value

    Args:
        reward: [T, ...] r_t.
        discount: [T, ...] d_t, 0 where the episode ends at t.
        last_value: [...] what the state after the last step is worth; 0 for nothing.

    Returns:
        [T, ...] returns.

    Raises:
        ValueError: a discount or last value of another shape; only scalars are broadcast.

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
    """A trajectory with its GAE advantages and λ-return targets.

    Steps of weight 0 (padding, the dummy step of a host environment) are not there: advantage
    and next value pass through them unchanged, undiscounted, and whatever they contain is ignored.

    Args:
        trajectory: [T, N].
        gamma: [] discount per step.
        lambda_: [] trace decay.

    Returns:
        Batch [T, N] with advantage Â_t and target Â_t + V(s_t); a step of weight 0 holds the
        advantage it passes on and target 0.

    Raises:
        ValueError: leaves of the trajectory that differ in shape.

    Source: Schulman et al. 2016, eqs. 11-16.
    """
    _check_leaves(trajectory, gamma, lambda_)
    real = trajectory.weight > 0
    alive = real & ~trajectory.terminated.astype(bool)
    advantage = gae(
        reward=jnp.where(real, trajectory.reward, 0.0),
        discount=jnp.where(real, gamma * (1.0 - trajectory.terminated), 1.0),
        value=jnp.where(real, trajectory.value, 0.0),
        # Selected, not only multiplied by 0: what is not read may be infinite.
        next_value=jnp.where(alive, _successor_value(trajectory, real), 0.0),
        cont=jnp.where(real, 1.0 - trajectory.done, 1.0),
        lambda_=jnp.where(real, lambda_, 1.0),
    )
    target = jnp.where(real, advantage + trajectory.value, 0.0)
    return _batch(trajectory, advantage, target)


def estimate_returns(trajectory: Trajectory, *, gamma: jax.Array | float) -> Batch:
    """A trajectory with bootstrapped reward-to-go targets and Monte-Carlo advantages.

    G_t = r_t + γ (1 − terminated_t) (G_{t+1} if the episode goes on, else V(s_{t+1}))
    Â_t = G_t − V(s_t)

    This is GAE at λ = 1: the rewards up to where the episode or the rollout was cut, and V
    from there on.

    Args:
        trajectory: [T, N].
        gamma: [] discount per step.

    Returns:
        Batch [T, N] with target G_t and advantage G_t − V(s_t).

    Raises:
        ValueError: leaves of the trajectory that differ in shape.

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
    """δ_t = r_t + d_t V(s_{t+1}) − V(s_t), of arguments that have one shape with the others."""
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
    # The loop is latency-bound: eight steps in one iteration cost little more than one.
    return jax.lax.scan(step, start, (x, decay), reverse=True, unroll=8)[1]


def _successor_value(trajectory: Trajectory, real: jax.Array) -> jax.Array:
    """next_value with steps of weight 0 skipped: V of the next state in which anything happened.

    After a last step of weight 0 that state is the one the rollout ended in, whose value is the
    last row's next_value whatever its weight.
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
