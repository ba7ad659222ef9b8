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
    """The episode that each step belongs to.

    Attributes:
        start: [T, N] index of the episode's first step.
        first: [T, N] 1 at the first step of a counted episode, else 0.
        last: [T, N] 1 at the last step of a counted episode, else 0.
        counted: [T, N] 1 at every step of a counted episode, else 0.
    """

    start: jax.Array
    first: jax.Array
    last: jax.Array
    counted: jax.Array


def whole_episodes(done: jax.Array, weight: jax.Array, time_limit: int) -> Episodes:
    """The episodes that are certain to end within the rollout.

    An episode that starts at step t is counted if t + limit <= T, whatever its actual length.
    Counting all episodes that ended would bias the estimate towards short episodes.

    Args:
        done: [T, N] bool, whether the episode ended, so that the next step starts an episode. The
            first step starts one as well.
        weight: [T, N] weights; steps of weight 0 were not executed and belong to no episode.
        time_limit: number of steps of the longest possible episode.
    """
    num_steps, done = done.shape[0], done.astype(bool)
    time, real = jnp.arange(num_steps)[:, None], weight > 0
    latest = jax.lax.cummax(jnp.where(real, time, -1), axis=0)
    before = jnp.roll(latest, 1, axis=0).at[0].set(-1)  # the last step that was executed
    after_end = jnp.take_along_axis(done, jnp.maximum(before, 0), axis=0)
    starts = real & ((before < 0) | after_end)
    start = jax.lax.cummax(jnp.where(starts, time, 0), axis=0)
    counted = real & (start + time_limit <= num_steps)
    flags = (x.astype(jnp.float32) for x in (starts & counted, done & counted, counted))
    return Episodes(start, *flags)


def no_baseline(returns: jax.Array, value: jax.Array, episodes: Episodes) -> jax.Array:
    """No baseline: b = 0."""
    return jnp.zeros_like(returns)


def batch_mean(returns: jax.Array, value: jax.Array, episodes: Episodes) -> jax.Array:
    """The mean return over all counted steps: b = E[u].

    Each return is a part of its own baseline, which shrinks the gradient by a relative amount of
    about one over the number of episodes.
    """
    return jnp.broadcast_to(losses.mean(returns, episodes.counted), returns.shape)


def leave_one_out(returns: jax.Array, value: jax.Array, episodes: Episodes) -> jax.Array:
    """b_e = 1/(E−1) Σ_{e' ≠ e} R_{e'}, the mean return of the other episodes; 0 if there is none.

    R is u at the first step of an episode. The baseline is independent of the actions of episode
    e, so that the gradient is unbiased if the number of episodes is fixed.

    Source: Kool et al. 2019, Buy 4 REINFORCE Samples, Get a Baseline for Free.
    """
    own = jnp.take_along_axis(returns, episodes.start, axis=0)
    others = parallel.sum(jnp.sum(jnp.where(episodes.first > 0, returns, 0.0))) - own
    count = parallel.sum(jnp.sum(episodes.first)) - 1.0
    return jnp.where(count > 0, others / jnp.maximum(count, 1.0), 0.0)


def learned_value(returns: jax.Array, value: jax.Array, episodes: Episodes) -> jax.Array:
    """A learned baseline b_t = V(s_t), which is fitted to u_t.

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
    """The loss of one rollout with E episodes and a total of M steps.

    L(θ) = 1/E Σ_e Σ_t −log π_θ(a_t|s_t) (u_t − b) + 1/M Σ (c_v ½ (V_θ − u_t)² − c_e H[π_θ])
    u_t = Σ_{i>=t} γ^{i−t} r_i

    The first term is summed over the steps of an episode and averaged over episodes; the others are
    means over steps. The gradient of the first term is −∇J. It is unbiased for γ = 1 and any
    baseline that does not depend on the actions it is subtracted for. For γ < 1 it is the usual
    gradient, which omits a factor γ^t. If a rollout is longer than the time limit, E is random as
    well, and the ratio of two means has a bias of the order of 1/E.

    Args:
        policy: policy whose `apply(params, obs)` returns (distribution, value).
        config: Config with the coefficients c_v and c_e.

    Returns:
        Function (params, Batch with leaves [M, ...] and extra Episodes) -> (loss [], metrics).

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

    `estimate` requires rollouts whose first step starts an episode in every environment, as those
    of `Config.collector` do.

    Args:
        policy: policy whose critic is `config.critic`.
        config: hyperparameters, a Config with a time_limit.
        optimizer: optax transformation that replaces the configured optimiser.

    Source: Williams 1992.
    """
    if config.critic == "v" and policy.critic != "v":
        raise ValueError(
            f"a learned baseline requires critic 'v', but the policy has critic {policy.critic!r}"
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
