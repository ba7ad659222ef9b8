"""Accounting inside a rollout: the episodes under way, and those that a time limit truncates."""

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
    """The episodes that are under way.

    Attributes:
        start: [N] bool, the next step is the first of an episode.
        episode_return: [N] raw reward so far.
        episode_length: [N] steps so far.
        discounted_return: [N] Σ γ^k r_{t−k}, whose deviation scales the rewards.
    """

    start: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array
    discounted_return: jax.Array


def no_episodes(num_envs: int) -> Episodes:
    """N episodes before their first step."""
    zeros = lambda dtype: jnp.zeros(num_envs, dtype)  # each its own: none is donated twice
    return Episodes(jnp.ones(num_envs, bool), zeros(float), zeros(int), zeros(float))


def advance(
    episodes: Episodes,
    rewards: tuple[jax.Array, jax.Array],
    done: jax.Array,
    *,
    valid: jax.Array,
    gamma: jax.Array | float,
) -> tuple[Episodes, Episodes]:
    """Episodes one step later.

    A step that did not happen changes nothing: the episode that starts after it still starts.

    Args:
        episodes: before the step.
        rewards: ([N] learned from, [N] raw); the raw ones are reported.
        done: [N] bool.
        valid: [N] bool, False where the step did not happen.
        gamma: [] discount.

    Returns:
        (ready for the next step, totals as they stand at this one).
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
    """Statistics of the episodes that finished; NaN where there were none.

    Args:
        finished: [T, N] or [N] bool, the last steps of the episodes that are counted.
        totals: of the same shape, as `advance` returns them.
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
    """Episodes of which some ended without a result: those that follow them start.

    Args:
        episodes: ready for the next step.
        abandoned: [N] bool.
    """
    fresh = jax.tree.map(lambda x: jnp.where(abandoned, jnp.zeros_like(x), x), episodes)
    return dataclasses.replace(fresh, start=episodes.start | abandoned)


# Of an environment that may truncate at any step, so many truncations are kept before the critic
# is asked for their values.
FEW_CUTS = 4


class Cuts(NamedTuple):
    """What the critic needs to value the futures that time limits cut off.

    Attributes:
        used: [N] slots in use.
        final: (core, obs), [C, N, ...] each: the true final observations, in order.
        at: [C, N] the steps they are of; T where a slot is free. None where there is a slot for
            every truncation that there can be.
        value: [T, N] the values that are known already, where there was a truncation; or None.
    """

    used: jax.Array
    final: PyTree
    at: Any = None
    value: Any = None


def no_cuts(num_steps: int, env: VectorEnv, example: PyTree) -> Cuts:
    """Slots for as many truncations as there can be.

    A time limit of L steps cuts an episode at most C = 1 + (T − 1) // L times in T steps, so a
    few slots hold every true final observation and none has to be kept for all steps. Where the
    limit is only the longest that an episode can be, the slots are emptied as often as they are
    full.

    Args:
        num_steps: T.
        env: its num_envs and time_limit, and whether it `truncates_sooner`.
        example: (core, obs), [N, ...].
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
    """Write what was truncated at this step into each environment's next free slot.

    Args:
        cuts: before the step.
        truncated: [N] bool.
        final: (core, obs), [N, ...].
        time: [] the step, from 0 on.
        empty: `emptied`, for where there is no free slot.
    """
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    if cuts.at is not None:
        full = jnp.any(truncated & (cuts.used >= slots))
        known = jax.lax.cond(full, lambda c: empty(c)._replace(final=()), _unchanged, cuts)
        cuts = known._replace(final=cuts.final)
    slot = jnp.where(truncated, cuts.used, slots)  # out of range: dropped
    column = jnp.arange(cuts.used.shape[0])
    final = jax.tree.map(lambda s, x: s.at[slot, column].set(x, mode="drop"), cuts.final, final)
    at = None if cuts.at is None else cuts.at.at[slot, column].set(time, mode="drop")
    return Cuts(cuts.used + truncated, final, at, cuts.value)


def _unchanged(cuts: Cuts) -> Cuts:
    """Without the final observations, which nothing changes: they are not copied."""
    return cuts._replace(final=())


def emptied(key: jax.Array, cuts: Cuts, *, value_of: Callable[..., jax.Array]) -> Cuts:
    """Ask the critic for the values of the observations in all slots, which are free then.

    Args:
        key: consumed.
        cuts: with `at` and `value`.
        value_of: (key, core [N, ...], obs [N, ...]) -> [N].
    """
    slots, column = cuts.at.shape[0], jnp.arange(cuts.used.shape[0])
    cut_value = jax.vmap(value_of)(jax.random.split(key, slots), *cuts.final)
    value = cuts.value.at[cuts.at, column].set(cut_value.astype(cuts.value.dtype), mode="drop")
    free = jnp.full_like(cuts.at, cuts.value.shape[0])
    return Cuts(jnp.zeros_like(cuts.used), cuts.final, free, value)


def lost_cuts(cuts: Cuts) -> Metrics:
    """Truncations that found no slot, because the environment's time_limit is not one."""
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
    """The value of each step's successor, of the true one where an episode was truncated.

    Args:
        key: consumed.
        next_value: [T, N] V of the observation after each step, whatever episode it is of.
        truncated: [T, N] bool.
        cuts: what was truncated.
        value_of: (key, core [N, ...], obs [N, ...]) -> [N].

    Returns:
        [T, N].
    """
    if cuts.at is not None:
        return jnp.where(truncated, emptied(key, cuts, value_of=value_of).value, next_value)
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    cut_value = jax.vmap(value_of)(jax.random.split(key, slots), *cuts.final)
    slot = jnp.minimum(jnp.cumsum(truncated, axis=0) - 1, slots - 1)
    at_cut = jnp.take_along_axis(cut_value, jnp.maximum(slot, 0), axis=0)
    return jnp.where(truncated, at_cut, next_value)
