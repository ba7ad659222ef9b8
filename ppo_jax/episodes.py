"""Accounting inside a rollout: the episodes under way, and those that a time limit truncates."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

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
    count = jnp.sum(finished)
    returns = totals.episode_return

    def mean(x: jax.Array) -> jax.Array:
        average = jnp.sum(jnp.where(finished, x, 0.0)) / jnp.maximum(count, 1)
        return jnp.where(count > 0, average, jnp.nan)

    def extreme(reduce: Any, worst: float) -> jax.Array:
        return jnp.where(count > 0, reduce(jnp.where(finished, returns, worst)), jnp.nan)

    average = mean(returns)
    return {
        "episodes": count,
        "episode_return": average,
        "episode_return_std": jnp.sqrt(mean(jnp.square(returns - average))),
        "episode_return_min": extreme(jnp.min, jnp.inf),
        "episode_return_max": extreme(jnp.max, -jnp.inf),
        "episode_length": mean(totals.episode_length),
    }


class Cuts(NamedTuple):
    """What the critic needs to value the futures that time limits cut off.

    Attributes:
        used: [N] truncations so far in this rollout.
        final: (core, obs), [C, N, ...] each: the true final observations, in order.
    """

    used: jax.Array
    final: PyTree


def no_cuts(num_steps: int, env: VectorEnv, example: PyTree) -> Cuts:
    """Slots for as many truncations as there can be.

    A time limit of L steps cuts an episode at most C = 1 + (T − 1) // L times in T steps, so a
    few slots hold every true final observation and none has to be kept for all steps.

    Args:
        num_steps: T.
        env: its num_envs and time_limit.
        example: (core, obs), [N, ...].
    """
    limit = getattr(env, "time_limit", None)
    slots = num_steps if limit is None else 1 + int((num_steps - 1) // limit)
    final = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), example)
    return Cuts(jnp.zeros(env.num_envs, jnp.int32), final)


def remember_cuts(cuts: Cuts, truncated: jax.Array, final: PyTree) -> Cuts:
    """Write what was truncated at this step into each environment's next free slot."""
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    slot = jnp.where(truncated, cuts.used, slots)  # out of range: dropped
    column = jnp.arange(cuts.used.shape[0])
    final = jax.tree.map(lambda s, x: s.at[slot, column].set(x, mode="drop"), cuts.final, final)
    return Cuts(cuts.used + truncated, final)


def lost_cuts(cuts: Cuts) -> Metrics:
    """Truncations that found no slot, because the environment's time_limit is not one."""
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    return {"lost_cuts": jnp.sum(jnp.maximum(cuts.used - slots, 0))}


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
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    cut_value = jax.vmap(value_of)(jax.random.split(key, slots), *cuts.final)
    slot = jnp.minimum(jnp.cumsum(truncated, axis=0) - 1, slots - 1)
    at_cut = jnp.take_along_axis(cut_value, jnp.maximum(slot, 0), axis=0)
    return jnp.where(truncated, at_cut, next_value)
