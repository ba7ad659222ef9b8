"""Accounting inside a rollout: returns of current episodes, and values at truncations."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import parallel
from ppo_jax.envs.protocol import VectorEnv
from ppo_jax.types import Metrics, PyTree


@struct.dataclass
class Episodes:
    """The current episodes of N environments.

    Attributes:
        start: [N] bool, whether the next step is the first one of an episode.
        episode_return: [N] sum of the raw rewards so far.
        episode_length: [N] number of steps so far.
        discounted_return: [N] Σ γ^k r_{t−k}, whose standard deviation scales the rewards.
    """

    start: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array
    discounted_return: jax.Array


def no_episodes(num_envs: int) -> Episodes:
    """The accounting of N episodes before their first step."""
    zeros = lambda dtype: jnp.zeros(num_envs, dtype)  # separate arrays: none is donated twice
    return Episodes(jnp.ones(num_envs, bool), zeros(float), zeros(int), zeros(float))


def advance(
    episodes: Episodes,
    rewards: tuple[jax.Array, jax.Array],
    done: jax.Array,
    *,
    valid: jax.Array,
    gamma: jax.Array | float,
) -> tuple[Episodes, Episodes]:
    """Update the accounting of the episodes after one step.

    An invalid step changes nothing: if an episode was to start at it, the next step starts it.

    Args:
        episodes: accounting before the step.
        rewards: (training rewards [N], raw rewards [N]); the raw rewards are reported.
        done: [N] bool, whether the episode ended.
        valid: [N] bool, False for a step that was not executed.
        gamma: [] discount factor γ.

    Returns:
        (accounting before the next step, totals of each episode at this step).
    """
    reward, raw_reward = rewards
    totals = Episodes(
        start=done,
        episode_return=episodes.episode_return + raw_reward,
        episode_length=episodes.episode_length + 1,
        discounted_return=gamma * episodes.discounted_return + reward,
    )
    ready = jax.tree.map(lambda x: jnp.where(done, jnp.zeros_like(x), x), totals)
    ready = dataclasses.replace(ready, start=done)
    return jax.tree.map(lambda new, old: jnp.where(valid, new, old), ready, episodes), totals


def episode_metrics(finished: jax.Array, totals: Episodes) -> Metrics:
    """Metrics of the episodes that finished; NaN if there are none.

    Args:
        finished: [T, N] or [N] bool, True at the last steps of the episodes that are counted.
        totals: totals of the same shape, as `advance` returns them.
    """
    count = parallel.sum(jnp.sum(finished))
    returns = totals.episode_return

    def mean(x: jax.Array) -> jax.Array:
        average = parallel.sum(jnp.sum(jnp.where(finished, x, 0.0))) / jnp.maximum(count, 1)
        return jnp.where(count > 0, average, jnp.nan)

    def extreme(reduce: Any, worst: float) -> jax.Array:
        return jnp.where(count > 0, reduce(jnp.where(finished, returns, worst)), jnp.nan)

    def least(x: jax.Array) -> jax.Array:
        return parallel.smallest(jnp.min(x))

    def most(x: jax.Array) -> jax.Array:
        return parallel.largest(jnp.max(x))

    average = mean(returns)
    return {
        "episodes": count,
        "episode_return": average,
        "episode_return_std": jnp.sqrt(mean(jnp.square(returns - average))),
        "episode_return_min": extreme(least, jnp.inf),
        "episode_return_max": extreme(most, -jnp.inf),
        "episode_length": mean(totals.episode_length),
    }


def give_up(episodes: Episodes, abandoned: jax.Array) -> Episodes:
    """Restart the accounting of episodes that ended without a result.

    Args:
        episodes: accounting before the next step.
        abandoned: [N] bool, whether the episode was abandoned.
    """
    fresh = jax.tree.map(lambda x: jnp.where(abandoned, jnp.zeros_like(x), x), episodes)
    return dataclasses.replace(fresh, start=episodes.start | abandoned)


# In an environment that may truncate at any step, this number of truncations is stored before the
# critic evaluates them.
FEW_CUTS = 4


class Cuts(NamedTuple):
    """The states at truncations, from which the critic bootstraps.

    Attributes:
        used: [N] number of slots in use.
        final: (core, obs) of the true final states, in order, with leaves [C, N, ...].
        at: [C, N] steps of the final states, T for a free slot; None if there are enough slots for
            every possible truncation.
        value: [T, N] values at the truncations that were already evaluated, or None.
    """

    used: jax.Array
    final: PyTree
    at: Any = None
    value: Any = None


def no_cuts(num_steps: int, env: VectorEnv, example: PyTree) -> Cuts:
    """Empty slots for the states at truncations.

    A time limit of L steps truncates an episode at most C = 1 + (T − 1) // L times in T steps, so
    that C slots hold every true final observation, and it is not stored for all T steps. If an
    environment can truncate before its time limit, the slots are emptied whenever they are full.

    Args:
        num_steps: number T of steps.
        env: environment with the attributes num_envs, time_limit and `truncates_sooner`.
        example: (core, obs) with leaves [N, ...].
    """
    limit, sooner = getattr(env, "time_limit", None), getattr(env, "truncates_sooner", False)
    unknown = min(num_steps, FEW_CUTS) if sooner else num_steps
    slots = unknown if limit is None else 1 + int((num_steps - 1) // limit)
    final = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), example)
    used = jnp.zeros(env.num_envs, jnp.int32)
    if not sooner:
        return Cuts(used, final)
    at = jnp.full((slots, env.num_envs), num_steps, jnp.int32)
    return Cuts(used, final, at, jnp.zeros((num_steps, env.num_envs)))


def remember_cuts(
    cuts: Cuts,
    truncated: jax.Array,
    final: PyTree,
    *,
    time: jax.Array,
    empty: Callable[[Cuts], Cuts],
) -> Cuts:
    """Store the states that were truncated at this step in each environment's next free slot.

    Args:
        cuts: slots before the step.
        truncated: [N] bool, whether the episode was truncated.
        final: (core, obs) of the true final states, with leaves [N, ...].
        time: [] index of the step, from 0.
        empty: function such as `emptied`, called if there is no free slot.
    """
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    if cuts.at is not None:
        full = jnp.any(truncated & (cuts.used >= slots))
        known = jax.lax.cond(full, lambda c: empty(c)._replace(final=()), _unchanged, cuts)
        cuts = known._replace(final=cuts.final)
    slot = jnp.where(truncated, cuts.used, slots)  # an index out of range is dropped
    column = jnp.arange(cuts.used.shape[0])
    final = jax.tree.map(lambda s, x: s.at[slot, column].set(x, mode="drop"), cuts.final, final)
    at = None if cuts.at is None else cuts.at.at[slot, column].set(time, mode="drop")
    return Cuts(cuts.used + truncated, final, at, cuts.value)


def _unchanged(cuts: Cuts) -> Cuts:
    """The slots without the final observations, which are then not copied."""
    return cuts._replace(final=())


def emptied(key: jax.Array, cuts: Cuts, *, value_of: Callable[..., jax.Array]) -> Cuts:
    """Evaluate the observations in all slots with the critic and free the slots.

    Args:
        key: PRNG key.
        cuts: slots with `at` and `value`.
        value_of: function (key, core [N, ...], obs [N, ...]) -> values [N].
    """
    slots, column = cuts.at.shape[0], jnp.arange(cuts.used.shape[0])
    cut_value = jax.vmap(value_of)(jax.random.split(key, slots), *cuts.final)
    value = cuts.value.at[cuts.at, column].set(cut_value.astype(cuts.value.dtype), mode="drop")
    free = jnp.full_like(cuts.at, cuts.value.shape[0])
    return Cuts(jnp.zeros_like(cuts.used), cuts.final, free, value)


def lost_cuts(cuts: Cuts) -> Metrics:
    """The number of truncations without a free slot, which occur if time_limit is wrong."""
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    return {"lost_cuts": parallel.sum(jnp.sum(jnp.maximum(cuts.used - slots, 0)))}


def value_at_cuts(
    key: jax.Array,
    next_value: jax.Array,
    truncated: jax.Array,
    *,
    cuts: Cuts,
    value_of: Callable[..., jax.Array],
) -> jax.Array:
    """The value of each step's successor state, of the true one where an episode was truncated.

    Args:
        key: PRNG key.
        next_value: [T, N] values of the observation after each step, of whatever episode.
        truncated: [T, N] bool, whether the episode was truncated.
        cuts: slots with the true final states.
        value_of: function (key, core [N, ...], obs [N, ...]) -> values [N].

    Returns:
        [T, N] values of the successor states.
    """
    if cuts.at is not None:
        return jnp.where(truncated, emptied(key, cuts, value_of=value_of).value, next_value)
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    cut_value = jax.vmap(value_of)(jax.random.split(key, slots), *cuts.final)
    slot = jnp.minimum(jnp.cumsum(truncated, axis=0) - 1, slots - 1)
    at_cut = jnp.take_along_axis(cut_value, jnp.maximum(slot, 0), axis=0)
    return jnp.where(truncated, at_cut, next_value)
