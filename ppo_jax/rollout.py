"""Collecting experience: parameters and an environment's state in, a trajectory out."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import normalization
from ppo_jax.envs.protocol import VectorEnv
from ppo_jax.networks import Policy, SequenceInputs, StateAction
from ppo_jax.types import Batch, Metrics, Params, PyTree, Trajectory

# Up to so many environments an operation of a step takes longer to begin than to do.
FEW_ENVS = 16


@struct.dataclass
class Moments:
    """Running statistics; () where a quantity is not normalised.

    Attributes:
        obs: tree of RunningMoments like one observation.
        reward: RunningMoments of the discounted return, shape ().
    """

    obs: PyTree = ()
    reward: PyTree = ()


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


@struct.dataclass
class RolloutState:
    """Everything collecting changes.

    Attributes:
        env_state: of the vector environment.
        obs: [N, ...] raw, the next to act on.
        core: the policy's memory; () without one.
        moments: Moments, frozen during a rollout.
        metrics: of the last rollout, [] each; NaN where no episode finished.
        episodes: Episodes.
    """

    env_state: PyTree
    obs: PyTree
    core: PyTree
    moments: Moments
    metrics: Metrics
    episodes: Any = None


class Cuts(NamedTuple):
    """What the critic needs to value the futures that time limits cut off.

    Attributes:
        used: [N] truncations so far in this rollout.
        final: (core, obs), [C, N, ...] each: the true final observations, in order.
    """

    used: jax.Array
    final: PyTree


def init(
    key: jax.Array,
    policy: Policy,
    vector_env: VectorEnv,
    *,
    normalize_obs: bool = False,
    normalize_reward: bool = False,
) -> RolloutState:
    """N environments at the start of their first episodes.

    Args:
        key: consumed.
        policy: for its initial memory.
        vector_env: whose environments.
        normalize_obs: keep statistics of observations and act on normalised ones.
        normalize_reward: keep statistics of discounted returns and scale rewards by them.
    """
    obs, env_state = vector_env.reset(key)
    num_envs = vector_env.num_envs
    core, episodes = policy.init_core(num_envs), _no_episodes(num_envs)
    moments = Moments(
        obs=normalization.init_tree(jax.tree.map(lambda x: x[0], obs)) if normalize_obs else (),
        reward=normalization.init(()) if normalize_reward else (),
    )
    metrics = _episode_metrics(jnp.zeros(num_envs, bool), episodes)
    metrics |= _lost_cuts(_no_cuts(1, vector_env, (core, obs)))
    shapes = jax.eval_shape(functools.partial(_refresh, vector_env), key, env_state)[1]
    metrics |= jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return RolloutState(env_state, obs, core, moments, metrics, episodes)


def restart(key: jax.Array, state: RolloutState, *, env: VectorEnv, policy: Policy) -> RolloutState:
    """N new episodes; those that were under way are given up, the statistics stay.

    Args:
        key: consumed.
        state: of an earlier rollout.
        env: the vector environment, reset.
        policy: for its initial memory.
    """
    obs, env_state = env.reset(key)
    core, episodes = policy.init_core(env.num_envs), _no_episodes(env.num_envs)
    return RolloutState(env_state, obs, core, state.moments, state.metrics, episodes)


def normalize_obs(moments: Moments, obs: PyTree) -> PyTree:
    """An observation as the policy sees it."""
    return normalization.normalize_tree(moments.obs, obs) if moments.obs != () else obs


def collect(
    key: jax.Array,
    params: Params,
    state: RolloutState,
    *,
    env: VectorEnv,
    policy: Policy,
    num_steps: int,
    gamma: jax.Array | float,
) -> tuple[RolloutState, Trajectory]:
    """Act for T steps in N environments.

    Args:
        key: consumed.
        params: of the policy.
        state: where the last rollout stopped.
        env: the vector environment.
        policy: whose actions are taken.
        num_steps: T.
        gamma: [] discount, for the scale of normalised rewards alone.

    Returns:
        (RolloutState with the metrics of this rollout, Trajectory [T, N])
    """
    state, trajectory, rows = _collect(key, params, state, env, policy, num_steps, gamma)
    metrics = _episode_metrics(rows["totals"].start & rows["valid"], rows["totals"])
    return dataclasses.replace(state, metrics=metrics | state.metrics), trajectory


def collect_episodes(
    key: jax.Array,
    params: Params,
    state: RolloutState,
    *,
    env: VectorEnv,
    policy: Policy,
    num_steps: int,
    gamma: jax.Array | float,
    longest: int,
) -> tuple[RolloutState, Trajectory]:
    """`collect` from the start of new episodes; those that were under way are given up.

    For methods that learn from whole episodes under one policy. The metrics are those of episodes
    that had time to finish wherever they went: among the later ones the short would be
    over-represented.

    Args:
        as for `collect`.
        longest: steps of the longest possible episode, at most num_steps.

    Returns:
        (RolloutState, Trajectory [T, N]) whose first row starts an episode everywhere.
    """
    reset_key, key = jax.random.split(key)
    state = restart(reset_key, state, env=env, policy=policy)
    state, trajectory, rows = _collect(key, params, state, env, policy, num_steps, gamma)
    start = jnp.arange(1, num_steps + 1)[:, None] - rows["totals"].episode_length
    in_time = start + longest <= num_steps
    metrics = _episode_metrics(rows["totals"].start & rows["valid"] & in_time, rows["totals"])
    return dataclasses.replace(state, metrics=metrics | state.metrics), trajectory


def _collect(
    key: jax.Array,
    params: Params,
    state: RolloutState,
    env: VectorEnv,
    policy: Policy,
    num_steps: int,
    gamma: jax.Array | float,
) -> tuple[RolloutState, Trajectory, dict[str, Any]]:
    """(state with the metrics of the environment, trajectory, what else the steps left)."""
    noise_key, env_key, refresh_key, critic_key = jax.random.split(key, 4)
    # All noise at once: one wide draw costs a fraction of T narrow ones inside the loop.
    dist = jax.eval_shape(policy.act, params, state.core, state.obs, state.episodes.start)[1]
    noise = dist.noise(noise_key, (num_steps,))
    keys = jax.random.split(env_key, num_steps)
    cuts = _no_cuts(num_steps, env, (state.core, state.obs))
    carry = (state.env_state, state.obs, state.core, state.episodes, cuts)
    step = functools.partial(_step, params, state.moments, env, policy, gamma)
    # With few environments the cost is in the number of operations, and two steps in one
    # iteration share those of the loop: 5 % of a whole update with 4.
    unroll = 2 if env.num_envs <= FEW_ENVS else 1
    carry, rows = jax.lax.scan(step, carry, (noise, keys), unroll=unroll)
    rows["core"] = jax.tree.map(lambda x: x[None], state.core)
    env_state, obs, core, episodes, cuts = carry

    end = (core, obs)
    inputs, value, next_value = _judge(critic_key, params, state.moments, policy, rows, end, cuts)
    env_state, env_metrics = _refresh(env, refresh_key, env_state)
    weight = rows["valid"].astype(jnp.float32)
    moments, reward = _update_moments(state.moments, rows, weight)
    settled = rows.get("settled", False)
    trajectory = Trajectory(
        obs=inputs,
        action=rows["action"],
        log_prob=rows["log_prob"],
        value=value,
        next_value=next_value,
        reward=reward,
        terminated=rows["terminated"] | settled,
        done=rows["terminated"] | rows["truncated"] | settled,
        weight=weight,
    )
    metrics = _lost_cuts(cuts) | env_metrics
    return RolloutState(env_state, obs, core, moments, metrics, episodes), trajectory, rows


def _judge(
    key: jax.Array,
    params: Params,
    moments: Moments,
    policy: Policy,
    rows: dict[str, Any],
    end: tuple[PyTree, PyTree],
    cuts: Cuts,
) -> tuple[PyTree, jax.Array, jax.Array]:
    """The network's inputs and what the critic says of them: (inputs, value, next_value).

    A critic of states says V(s_t) and V(s_{t+1}); one of actions q(s_t, a_t) and
    q(s_{t+1}, a'), with an a' drawn from the policy that is never executed.
    """
    inputs = normalize_obs(moments, rows["obs"])
    if jax.tree.leaves(rows["core"]):
        inputs = SequenceInputs(inputs, rows["start"], rows["core"])
    num_steps, num_envs = rows["reward"].shape
    again_key, end_key, cut_key = jax.random.split(key, 3)

    def state_value(key: jax.Array, core: PyTree, obs: PyTree) -> jax.Array:
        _, dist, value = policy.act(params, core, obs, jnp.zeros(num_envs, bool))
        if policy.critic == "q":
            return policy.apply(params, StateAction(obs, dist.sample(key)))[1]
        return value

    def value_of(key: jax.Array, core: PyTree, obs: PyTree) -> jax.Array:
        return state_value(key, core, normalize_obs(moments, obs))

    if policy.critic == "q":
        now = jax.vmap(state_value)(jax.random.split(again_key, num_steps), (), inputs)
        inputs = StateAction(inputs, rows["action"])
        value = policy.apply(params, inputs)[1]
    else:
        # Where one wide pass of the critic serves all steps, nobody uses the values of the loop
        # and XLA drops the critic from it.
        now = value = rows["value"] if policy.value is None else policy.value(params, inputs)
    next_value = jnp.concatenate([now[1:], value_of(end_key, *end)[None]])
    return inputs, value, _value_at_cuts(cut_key, next_value, rows["truncated"], cuts, value_of)


def _step(
    params: Params,
    moments: Moments,
    env: VectorEnv,
    policy: Policy,
    gamma: jax.Array | float,
    carry: tuple[PyTree, ...],
    noise_and_key: tuple[jax.Array, jax.Array],
) -> tuple[tuple[PyTree, ...], dict[str, Any]]:
    """One step of all environments: the state after it, and what it leaves in the rows."""
    env_state, obs, core, episodes, cuts = carry
    noise, key = noise_and_key
    start = episodes.start
    core, dist, value = policy.act(params, core, normalize_obs(moments, obs), start)
    action = dist.sample_from(noise)
    next_obs, env_state, reward, terminated, truncated, info = env.step(
        key, env_state, dist.to_env(action)
    )
    rewards = (reward, info.get("raw_reward", reward))
    episodes, totals = _advance(episodes, rewards, terminated | truncated, info["valid"], gamma)
    cuts = _remember_cuts(cuts, truncated, (core, info["final_observation"]))
    row = {
        "obs": obs,
        "start": start,
        "action": action,
        "log_prob": dist.log_prob(action),
        "value": value,
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
        "valid": info["valid"],
        "totals": totals,
    }
    if "settled" in info:
        row["settled"] = info["settled"]
    return (env_state, next_obs, core, episodes, cuts), row


def flatten_steps(batch: Batch) -> Batch:
    """[T, N, ...] -> [T·N, ...]: every step is a row of its own, for policies without memory."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def sequences(batch: Batch) -> Batch:
    """[T, N, ...] -> [N, T, ...]: each environment's steps are one row, for policies with memory.

    The steps stay in order, episodes that begin among them included; what is shuffled is who they
    come from. The memory before the first of them, [1, N, ...], becomes [N, 1, ...].
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch)


def _no_episodes(num_envs: int) -> Episodes:
    """N episodes before their first step."""
    zeros = lambda dtype: jnp.zeros(num_envs, dtype)  # each its own: none is donated twice
    return Episodes(jnp.ones(num_envs, bool), zeros(float), zeros(int), zeros(float))


def _advance(
    episodes: Episodes,
    rewards: tuple[jax.Array, jax.Array],
    done: jax.Array,
    valid: jax.Array,
    gamma: Any,
) -> tuple[Episodes, Episodes]:
    """Episodes one step on: (ready for the next step, totals as they stand at this one).

    A step that did not happen changes nothing: the episode that starts after it still starts.
    Of the rewards, (learned from, raw), the raw is reported.
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


def _refresh(env: VectorEnv, key: jax.Array, env_state: PyTree) -> tuple[PyTree, Metrics]:
    """The environment's own preparation for the next rollout, if it has any."""
    refresh = getattr(env, "refresh", None)
    return refresh(key, env_state) if refresh else (env_state, {})


def _no_cuts(num_steps: int, env: VectorEnv, example: PyTree) -> Cuts:
    """Slots for as many truncations as there can be.

    A time limit of L steps cuts an episode at most C = 1 + (T − 1) // L times in T steps, so a
    few slots hold every true final observation and none has to be kept for all steps.
    """
    limit = getattr(env, "time_limit", None)
    slots = num_steps if limit is None else 1 + int((num_steps - 1) // limit)
    final = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), example)
    return Cuts(jnp.zeros(env.num_envs, jnp.int32), final)


def _remember_cuts(cuts: Cuts, truncated: jax.Array, final: PyTree) -> Cuts:
    """Write what was truncated at this step into each environment's next free slot."""
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    slot = jnp.where(truncated, cuts.used, slots)  # out of range: dropped
    column = jnp.arange(cuts.used.shape[0])
    final = jax.tree.map(lambda s, x: s.at[slot, column].set(x, mode="drop"), cuts.final, final)
    return Cuts(cuts.used + truncated, final)


def _lost_cuts(cuts: Cuts) -> Metrics:
    """Truncations that found no slot, because the environment's time_limit is not one."""
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    return {"lost_cuts": jnp.sum(jnp.maximum(cuts.used - slots, 0))}


def _value_at_cuts(
    key: jax.Array, next_value: jax.Array, truncated: jax.Array, cuts: Cuts, value_of: Any
) -> jax.Array:
    """next_value [T, N] with V of the true final observation where an episode was truncated."""
    slots = jax.tree.leaves(cuts.final)[0].shape[0]
    cut_value = jax.vmap(value_of)(jax.random.split(key, slots), *cuts.final)
    slot = jnp.minimum(jnp.cumsum(truncated, axis=0) - 1, slots - 1)
    at_cut = jnp.take_along_axis(cut_value, jnp.maximum(slot, 0), axis=0)
    return jnp.where(truncated, at_cut, next_value)


def _update_moments(
    moments: Moments, rows: dict[str, Any], weight: jax.Array
) -> tuple[Moments, jax.Array]:
    """Statistics including this rollout, and its rewards scaled by them."""
    obs, reward = moments.obs, rows["reward"]
    if obs != ():
        obs = normalization.update_tree(obs, rows["obs"], weight)
    if moments.reward == ():
        return Moments(obs, ()), reward
    returns = rows["totals"].discounted_return
    statistics = normalization.update(moments.reward, returns, weight)
    return Moments(obs, statistics), normalization.scale(statistics, reward)


def _episode_metrics(finished: jax.Array, totals: Episodes) -> Metrics:
    """Statistics of the episodes that finished, [T, N] masked; NaN where there were none."""
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
