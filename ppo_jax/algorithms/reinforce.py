"""REINFORCE: Monte-Carlo policy gradient over whole episodes (Williams 1992)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ppo_jax import losses, parallel, sgd
from ppo_jax.advantages import discounted_returns
from ppo_jax.algorithms.configs import Reinforce as Config
from ppo_jax.algorithms.configs import check_length
from ppo_jax.types import Algorithm, Batch, LearnerState, LossFn, Metrics, PyTree, Trajectory


class Episodes(NamedTuple):
    """What is known of the episode each step belongs to.

    Attributes:
        start: [T, N] the step it started at.
        first: [T, N] 1 on the first step of an episode that counts.
        last: [T, N] 1 on the last step of an episode that counts.
        counted: [T, N] 1 on every step of an episode that counts.
    """

    start: jax.Array
    first: jax.Array
    last: jax.Array
    counted: jax.Array


def whole_episodes(done: jax.Array, weight: jax.Array, time_limit: int) -> Episodes:
    """The episodes that were sure to end within the rollout.

    An episode that starts at t counts if t + limit <= T, wherever it then goes. To count those
    that happened to end would favour the short ones.

    Args:
        done: [T, N] bool: the next step starts an episode, as the first one does.
        weight: [T, N] 0 for steps that did not happen; they belong to no episode.
        time_limit: steps of the longest possible episode.
    """
    num_steps, done = done.shape[0], done.astype(bool)
    time, real = jnp.arange(num_steps)[:, None], weight > 0
    latest = jax.lax.cummax(jnp.where(real, time, -1), axis=0)
    before = jnp.roll(latest, 1, axis=0).at[0].set(-1)  # the last step that did happen
    after_end = jnp.take_along_axis(done, jnp.maximum(before, 0), axis=0)
    starts = real & ((before < 0) | after_end)
    start = jax.lax.cummax(jnp.where(starts, time, 0), axis=0)
    counted = real & (start + time_limit <= num_steps)
    flags = (x.astype(jnp.float32) for x in (starts & counted, done & counted, counted))
    return Episodes(start, *flags)


def no_baseline(returns: jax.Array, value: jax.Array, episodes: Episodes) -> jax.Array:
    """b = 0."""
    return jnp.zeros_like(returns)


def batch_mean(returns: jax.Array, value: jax.Array, episodes: Episodes) -> jax.Array:
    """b = the mean of u over all steps that count.

    Each return is part of its own baseline, which shortens the gradient by about one part in the
    number of episodes.
    """
    return jnp.broadcast_to(losses.mean(returns, episodes.counted), returns.shape)


def leave_one_out(returns: jax.Array, value: jax.Array, episodes: Episodes) -> jax.Array:
    """b_e = 1/(E−1) Σ_{e' ≠ e} R_{e'}, the mean return of the other episodes; 0 if there is none.

    R = u at the episode's first step. It knows nothing of the actions of episode e, so where the
    number of episodes is fixed the gradient stays unbiased.

    Source: Kool et al. 2019, Buy 4 REINFORCE Samples, Get a Baseline for Free.
    """
    own = jnp.take_along_axis(returns, episodes.start, axis=0)
    others = parallel.sum(jnp.sum(jnp.where(episodes.first > 0, returns, 0.0))) - own
    count = parallel.sum(jnp.sum(episodes.first)) - 1.0
    return jnp.where(count > 0, others / jnp.maximum(count, 1.0), 0.0)


def learned_value(returns: jax.Array, value: jax.Array, episodes: Episodes) -> jax.Array:
    """b_t = V(s_t), fitted to u_t.

    Source: Sutton & Barto 2018, section 13.4.
    """
    return value


BASELINES: dict[str, Callable[[jax.Array, jax.Array, Episodes], jax.Array]] = {
    "none": no_baseline,
    "batch_mean": batch_mean,
    "leave_one_out": leave_one_out,
    "value": learned_value,
}


def make_loss(policy: Any, config: Config) -> LossFn:
    """The loss of one rollout of E episodes with M steps in all.

    L(θ) = 1/E Σ_e Σ_t −log π_θ(a_t|s_t) (u_t − b) + 1/M Σ (c_v ½ (V_θ − u_t)² − c_e H[π_θ])
    u_t = Σ_{i>=t} γ^{i−t} r_i

    The first term is a sum over the steps of an episode, the others are means over steps. Its
    gradient is −∇J, unbiased for γ = 1 and any baseline that does not look at the actions it
    judges; at γ < 1 it is the usual one, which leaves out a factor γ^t. Where a rollout is longer
    than the time limit E is random too, and a ratio of two means is off by the order of 1/E.

    Args:
        policy: its `apply(params, obs)` gives (distribution, value).
        config: c_v, c_e.

    Returns:
        (params, Batch [M] whose extra is Episodes) -> ([], metrics)

    Source: Williams 1992, Simple Statistical Gradient-Following Algorithms, section 5; Sutton &
    Barto 2018, section 13.3.
    """
    return losses.policy_gradient_loss(
        policy,
        value_coef=config.value_coef,
        entropy_coef=config.entropy_coef,
        episodes=lambda rows: jnp.maximum(parallel.sum(jnp.sum(rows.extra.first)), 1.0),
    )


def make(
    policy: Any, config: Config, optimizer: optax.GradientTransformation | None = None
) -> Algorithm:
    """REINFORCE as three functions: one gradient step on the whole episodes of each rollout.

    Args:
        policy: a Policy whose critic is `config.critic`.
        config: Config with a time_limit.
        optimizer: another optax transformation than the one the config describes.

    `estimate` takes rollouts whose first step starts an episode in every environment, as those of
    `Config.collector` do.

    Source: Williams 1992.
    """
    if config.critic == "v" and policy.critic != "v":
        raise ValueError(
            f"a learned baseline needs a critic 'v'; this policy's is {policy.critic!r}"
        )
    optimizer, begin, end = sgd.from_config(config, optimizer)

    def init(key: jax.Array, obs: PyTree) -> LearnerState:
        return sgd.init(policy.init(key, obs), optimizer)

    def estimate(trajectory: Trajectory) -> Batch:
        real = trajectory.weight > 0
        limit = check_length(trajectory.done.shape[0], config.time_limit)
        episodes = whole_episodes(trajectory.done, trajectory.weight, limit)
        discount = jnp.where(real, config.gamma * (1.0 - trajectory.done), 1.0)
        returns = discounted_returns(jnp.where(real, trajectory.reward, 0.0), discount, 0.0)
        baseline = BASELINES[config.baseline](returns, trajectory.value, episodes)
        return Batch(
            obs=trajectory.obs,
            action=trajectory.action,
            log_prob=trajectory.log_prob,
            value=trajectory.value,
            advantage=returns - baseline,
            target=returns,
            weight=episodes.counted,
            extra=episodes,
        )

    def update(key: jax.Array, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        learner, now = begin(learner, batch.weight.size)
        learner, metrics = sgd.sgd_step(learner, batch, make_loss(policy, now), optimizer)
        first, last = parallel.sum((jnp.sum(batch.extra.first), jnp.sum(batch.extra.last)))
        metrics |= {"whole_episodes": first, "unfinished_episodes": first - last}
        return end(learner, batch, now, metrics)

    return Algorithm(init, estimate, update)
