"""Collecting experience: parameters and an environment's state in, a trajectory out."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax import backend, guard, normalization, packed, parallel, watch
from ppo_jax.envs.protocol import VectorEnv
from ppo_jax.episodes import (
    Cuts,
    Episodes,
    advance,
    emptied,
    episode_metrics,
    give_up,
    lost_cuts,
    no_cuts,
    no_episodes,
    remember_cuts,
    value_at_cuts,
)
from ppo_jax.networks import Policy, SequenceInputs, StateAction
from ppo_jax.types import Batch, Metrics, Params, PyTree, Trajectory

Collect = Callable[[jax.Array, Params, "RolloutState"], tuple["RolloutState", Trajectory]]
# Metrics that are 0 where an environment is as it describes itself; what it means if one is not.
PROMISES = {
    "reused_resets": "more episodes ended in a rollout than there were fresh resets, so some were "
    "used twice: raise --reset-pool, or correct the environment's shortest_episode",
    "lost_cuts": "episodes were truncated sooner than the environment's time_limit says, and "
    "bootstrapped from wrong states: correct it, or set it to None",
}
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
    episodes: Episodes


@dataclasses.dataclass(frozen=True)
class Collector:
    """`collect` with all that stays the same during a run: what a training step calls.

    An algorithm whose Config has the hook `collector` makes another one of it.

    Attributes:
        env: the vector environment.
        policy: whose actions are taken.
        num_steps: T.
        gamma: [] discount.
    """

    env: VectorEnv
    policy: Policy
    num_steps: int
    gamma: jax.Array | float

    def __call__(
        self, key: jax.Array, params: Params, state: RolloutState
    ) -> tuple[RolloutState, Trajectory]:
        """`collect`."""
        return collect(key, params, state, **vars(self))

    def whole_episodes(self, longest: int) -> Collect:
        """`collect_episodes` in its place.

        Args:
            longest: steps of the longest possible episode.
        """
        return functools.partial(collect_episodes, longest=longest, **vars(self))


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
    core, episodes = policy.init_core(num_envs), no_episodes(num_envs)
    moments = Moments(
        obs=normalization.init_tree(jax.tree.map(lambda x: x[0], obs)) if normalize_obs else (),
        reward=normalization.init(()) if normalize_reward else (),
    )
    metrics = episode_metrics(jnp.zeros(num_envs, bool), episodes)
    metrics |= lost_cuts(no_cuts(1, vector_env, (core, obs)))
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
    again = getattr(env, "restart", None)
    obs, env_state = again(key, state.env_state) if again else env.reset(key)
    core, episodes = policy.init_core(env.num_envs), no_episodes(env.num_envs)
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
    state, trajectory, rows = _collect(key, params, state, Collector(env, policy, num_steps, gamma))
    metrics = episode_metrics(_finished(rows), rows["totals"])
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
    state, trajectory, rows = _collect(key, params, state, Collector(env, policy, num_steps, gamma))
    start = jnp.arange(1, num_steps + 1)[:, None] - rows["totals"].episode_length
    in_time = start + longest <= num_steps
    metrics = episode_metrics(_finished(rows) & in_time, rows["totals"])
    return dataclasses.replace(state, metrics=metrics | state.metrics), trajectory


def _finished(rows: dict[str, Any]) -> jax.Array:
    """[T, N] bool, the last steps of episodes."""
    return (rows["terminated"] | rows["truncated"]) & rows["valid"]


def _collect(
    key: jax.Array,
    params: Params,
    state: RolloutState,
    how: Collector,
) -> tuple[RolloutState, Trajectory, dict[str, Any]]:
    """(state with the metrics of the environment, trajectory, what else the steps left)."""
    env, policy, num_steps = how.env, how.policy, how.num_steps
    watch.see("rollout")
    noise_key, env_key, refresh_key, critic_key = jax.random.split(key, 4)
    # All noise at once: one wide draw costs a fraction of T narrow ones inside the loop.
    dist = jax.eval_shape(policy.act, params, state.core, state.obs, state.episodes.start)[1]
    noise = dist.noise(noise_key, (num_steps,))
    keys = jax.random.split(env_key, num_steps)
    cuts = no_cuts(num_steps, env, (state.core, state.obs))
    env_state = env.begin(state.env_state) if hasattr(env, "begin") else state.env_state
    carry = (env_state, state.obs, state.core, state.episodes, cuts)
    step = functools.partial(_step, params=params, moments=state.moments, how=how)
    steps = (noise, keys, jnp.arange(num_steps))
    carry, rows = _scan(step, carry, steps, num_envs=env.num_envs)
    rows["core"] = jax.tree.map(lambda x: x[None], state.core)
    env_state, obs, core, episodes, cuts = carry

    judge = functools.partial(_judge, moments=state.moments, policy=policy)
    inputs, value, next_value = judge(critic_key, params, rows, end=(core, obs), cuts=cuts)
    env_state, env_metrics = _refresh(env, refresh_key, env_state)
    rows.setdefault("valid", jnp.ones(rows["reward"].shape, bool))
    weight = rows["valid"].astype(jnp.float32)
    moments, reward = _update_moments(state.moments, rows, weight)
    # Whatever ends credit besides the end of an episode: a point of a game, a copy that failed.
    ended = rows.get("settled", False)
    cut = _before(rows["abandoned"]) if "abandoned" in rows else False
    trajectory = Trajectory(
        obs=inputs,
        action=rows["action"],
        log_prob=rows["log_prob"],
        value=value,
        next_value=next_value,
        reward=reward,
        terminated=rows["terminated"] | ended,
        done=rows["terminated"] | rows["truncated"] | ended | cut,
        weight=weight,
    )
    metrics = lost_cuts(cuts) | parallel.counted(env_metrics)
    return RolloutState(env_state, obs, core, moments, metrics, episodes), trajectory, rows


def _scan(
    step: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    carry: Any,
    steps: Any,
    *,
    num_envs: int,
) -> tuple[Any, dict[str, Any]]:
    """The steps of a rollout: (carry, what they leave, [T, ...])."""
    if not backend.launch_bound():
        # With few environments the cost is in the number of operations, and two steps in one
        # iteration share those of the loop: 5 % of a whole update with 4.
        return jax.lax.scan(step, carry, steps, unroll=2 if num_envs <= FEW_ENVS else 1)

    def packed_step(carry: Any, at: Any) -> tuple[Any, packed.Packed]:
        carry, row = step(carry, at)
        return carry, packed.pack(row)

    carry, rows = jax.lax.scan(packed_step, carry, steps, unroll=4)
    return carry, packed.unpack(rows)


def _judge(
    key: jax.Array,
    params: Params,
    rows: dict[str, Any],
    *,
    moments: Moments,
    policy: Policy,
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
    num_steps = rows["reward"].shape[0]
    again_key, end_key, cut_key = jax.random.split(key, 3)
    value_of = _value_of(params, moments, policy)
    if policy.critic == "q":
        state_value = _value_of(params, Moments(), policy)  # the inputs are normalised
        now = jax.vmap(state_value)(jax.random.split(again_key, num_steps), (), inputs)
        inputs = StateAction(inputs, rows["action"])
        value = policy.apply(params, inputs)[1]
    else:
        # Where one wide pass of the critic serves all steps, nobody uses the values of the loop
        # and XLA drops the critic from it.
        now = value = rows["value"] if policy.value is None else policy.value(params, inputs)
    next_value = jnp.concatenate([now[1:], value_of(end_key, *end)[None]])
    next_value = value_at_cuts(cut_key, next_value, rows["truncated"], cuts=cuts, value_of=value_of)
    return inputs, value, next_value


def _value_of(params: Params, moments: Moments, policy: Policy) -> Callable[..., jax.Array]:
    """The critic as a function (key, core [N, ...], obs [N, ...]) -> [N]."""

    def value_of(key: jax.Array, core: PyTree, obs: PyTree) -> jax.Array:
        obs = normalize_obs(moments, obs)
        num_envs = jax.tree.leaves(obs)[0].shape[0]
        _, dist, value = policy.act(params, core, obs, jnp.zeros(num_envs, bool))
        if policy.critic == "q":
            return policy.apply(params, StateAction(obs, dist.sample(key)))[1]
        return value

    return value_of


def _before(abandoned: jax.Array) -> jax.Array:
    """[T, N] the last steps of episodes that were abandoned. The state after such a step is known,
    it is the one that the abandoned step was to be made in: it is bootstrapped as at a time limit.
    """
    return jnp.roll(abandoned, -1, axis=0).at[-1].set(False)


def _step(
    carry: tuple[PyTree, ...],
    step: tuple[jax.Array, jax.Array, jax.Array],
    *,
    params: Params,
    moments: Moments,
    how: Collector,
) -> tuple[tuple[PyTree, ...], dict[str, Any]]:
    """One step of all environments: the state after it, and what it leaves in the rows."""
    env_state, obs, core, episodes, cuts = carry
    noise, key, time = step
    start = episodes.start
    core, dist, value = how.policy.act(params, core, normalize_obs(moments, obs), start)
    action = dist.sample_from(noise)
    # What is not finite is found afterwards, by the guard; no environment is given it.
    taken = guard.finite_action(dist.to_env(action), how.env.action_space)
    watch.see("act", obs=obs, network=dist, value=value, action=action, taken=taken)
    next_obs, env_state, reward, terminated, truncated, info = how.env.step(key, env_state, taken)
    rewards = (reward, info.get("raw_reward", reward))
    done = terminated | truncated
    final = info["final_observation"]
    watch.see("step", reward=reward, done=done, obs=next_obs, final=final, valid=info["valid"])
    episodes, totals = advance(episodes, rewards, done, valid=info["valid"], gamma=how.gamma)
    # The keys of environments are fold_in(key, 0), fold_in(key, 1), ...
    empty = functools.partial(
        emptied, jax.random.fold_in(key, 2**32 - 1), value_of=_value_of(params, moments, how.policy)
    )
    cuts = remember_cuts(cuts, truncated, (core, final), time=time, empty=empty)
    row = {
        "obs": obs,
        "action": action,
        "log_prob": dist.log_prob(action),
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
    }
    row |= _if_used(start, value, totals, moments=moments, policy=how.policy, core=core)
    # A constant that is True everywhere need not be kept for every step.
    if not (isinstance(info["valid"], np.ndarray) and info["valid"].all()):
        row["valid"] = info["valid"]
    if "abandoned" in info:
        episodes = give_up(episodes, info["abandoned"])
    row |= {name: info[name] for name in ("settled", "abandoned") if name in info}
    return (env_state, next_obs, core, episodes, cuts), row


def _if_used(
    start: jax.Array,
    value: jax.Array,
    totals: Episodes,
    *,
    moments: Moments,
    policy: Policy,
    core: PyTree,
) -> dict[str, Any]:
    """Of what a step may leave, the part that is looked at after the loop.

    XLA finds the rest by itself, but not where rows are packed.
    """
    nothing: Any = ()
    totals = dataclasses.replace(totals, start=nothing)
    if moments.reward == ():
        totals = dataclasses.replace(totals, discounted_return=nothing)
    row: dict[str, Any] = {"totals": totals}
    if jax.tree.leaves(core):
        row["start"] = start
    if policy.value is None and policy.critic != "q":
        row["value"] = value
    return row


def flatten_steps(batch: Batch) -> Batch:
    """[T, N, ...] -> [T·N, ...]: every step is a row of its own, for policies without memory."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def sequences(batch: Batch) -> Batch:
    """[T, N, ...] -> [N, T, ...]: each environment's steps are one row, for policies with memory.

    The steps stay in order, episodes that begin among them included; what is shuffled is who they
    come from. The memory before the first of them, [1, N, ...], becomes [N, 1, ...].
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch)


def _refresh(env: VectorEnv, key: jax.Array, env_state: PyTree) -> tuple[PyTree, Metrics]:
    """The environment's own preparation for the next rollout, if it has any."""
    refresh = getattr(env, "refresh", None)
    return refresh(key, env_state) if refresh else (env_state, {})


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
