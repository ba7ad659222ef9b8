"""Collection of experience: a policy acts in vector environments and returns a trajectory."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax import backend, guard, held_noise, normalization, packed, parallel, watch
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
from ppo_jax.value_distributions import value_of as mean_of

Collect = Callable[[jax.Array, Params, "RolloutState"], tuple["RolloutState", Trajectory]]
# Metrics that are 0 if an environment describes itself correctly, and what another value means.
PROMISES = {
    "reused_resets": "more episodes ended in a rollout than there were initial states in the reset "
    "pool, so some were used twice: raise --reset-pool, or correct the environment's "
    "shortest_episode",
    "lost_cuts": "episodes were truncated earlier than the environment's time_limit, and returns "
    "were bootstrapped from wrong states: correct time_limit, or set it to None",
}
# With at most this number of environments, starting an operation takes longer than executing it.
FEW_ENVS = 16


@struct.dataclass
class Moments:
    """Running statistics; () for a quantity that is not normalised.

    Attributes:
        obs: RunningMoments for each leaf of an observation.
        reward: RunningMoments of the discounted return, of shape ().
    """

    obs: PyTree = ()
    reward: PyTree = ()


@struct.dataclass
class RolloutState:
    """The state that collecting a rollout changes.

    Attributes:
        env_state: state of the vector environment.
        obs: [N, ...] current observations, before normalisation.
        core: state of the recurrent network; () for a feed-forward policy.
        moments: running statistics, constant during a rollout.
        metrics: scalar metrics of the last rollout; NaN where no episode finished.
        episodes: accounting of the current episodes.
        noise: noise that is kept for several steps, a HeldNoise; () if each step draws its own.
    """

    env_state: PyTree
    obs: PyTree
    core: PyTree
    moments: Moments
    metrics: Metrics
    episodes: Episodes
    noise: PyTree = ()


@dataclasses.dataclass(frozen=True)
class Collector:
    """`collect` with the arguments that stay constant during a run, as a training step calls it.

    An algorithm can replace it with the hook `collector` of its Config.

    Attributes:
        env: vector environment.
        policy: policy that chooses the actions.
        num_steps: number T of steps per rollout.
        gamma: [] discount factor γ.
    """

    env: VectorEnv
    policy: Policy
    num_steps: int
    gamma: jax.Array | float

    def __call__(
        self, key: jax.Array, params: Params, state: RolloutState
    ) -> tuple[RolloutState, Trajectory]:
        """Call `collect` with these arguments."""
        return collect(key, params, state, **vars(self))

    def whole_episodes(self, longest: int) -> Collect:
        """The collection of whole episodes, `collect_episodes`, with these arguments.

        Args:
            longest: number of steps of the longest possible episode.
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
    """The initial state of the rollout: N environments at the start of their first episodes.

    Args:
        key: PRNG key.
        policy: policy, for its initial recurrent state.
        vector_env: vector environment to reset.
        normalize_obs: whether observations are normalised by their running statistics.
        normalize_reward: whether rewards are scaled by the running statistics of discounted
            returns.
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
    noise = held_noise.init(policy.init_noise(num_envs))
    return RolloutState(env_state, obs, core, moments, metrics, episodes, noise)


def restart(key: jax.Array, state: RolloutState, *, env: VectorEnv, policy: Policy) -> RolloutState:
    """Start N new episodes. Current episodes are abandoned; the running statistics are kept.

    Args:
        key: PRNG key.
        state: state after an earlier rollout.
        env: vector environment to reset.
        policy: policy, for its initial recurrent state.
    """
    again = getattr(env, "restart", None)
    obs, env_state = again(key, state.env_state) if again else env.reset(key)
    core, episodes = policy.init_core(env.num_envs), no_episodes(env.num_envs)
    noise = held_noise.init(policy.init_noise(env.num_envs))
    return RolloutState(env_state, obs, core, state.moments, state.metrics, episodes, noise)


def normalize_obs(moments: Moments, obs: PyTree) -> PyTree:
    """Normalise an observation for the policy, if running statistics are kept."""
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
        key: PRNG key.
        params: parameters of the policy.
        state: state after the previous rollout.
        env: vector environment.
        policy: policy that chooses the actions.
        num_steps: number T of steps.
        gamma: [] discount factor γ, used only to scale normalised rewards.

    Returns:
        (RolloutState with the metrics of this rollout, Trajectory [T, N]).
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
    """Act for T steps from the start of new episodes; current episodes are abandoned.

    This is for methods that need whole episodes of one policy. The metrics count only episodes
    whose start leaves enough steps for the longest possible episode. Episodes that start later
    would bias the metrics towards short episodes.

    Args:
        key, params, state, env, policy, num_steps, gamma: the same as for `collect`.
        longest: number of steps of the longest possible episode, at most num_steps.

    Returns:
        (RolloutState, Trajectory [T, N] whose first step starts an episode in each environment).
    """
    reset_key, key = jax.random.split(key)
    state = restart(reset_key, state, env=env, policy=policy)
    state, trajectory, rows = _collect(key, params, state, Collector(env, policy, num_steps, gamma))
    start = jnp.arange(1, num_steps + 1)[:, None] - rows["totals"].episode_length
    in_time = start + longest <= num_steps
    metrics = episode_metrics(_finished(rows) & in_time, rows["totals"])
    return dataclasses.replace(state, metrics=metrics | state.metrics), trajectory


def _finished(rows: dict[str, Any]) -> jax.Array:
    """[T, N] bool, whether a step is the last one of an episode that is counted."""
    finished = (rows["terminated"] | rows["truncated"]) & rows["valid"]
    return finished & ~rows["shortened"] if "shortened" in rows else finished


def _collect(
    key: jax.Array,
    params: Params,
    state: RolloutState,
    how: Collector,
) -> tuple[RolloutState, Trajectory, dict[str, Any]]:
    """(state with the metrics of the environment, trajectory, all outputs of the steps)."""
    env, policy, num_steps = how.env, how.policy, how.num_steps
    watch.see("rollout")
    noise_key, env_key, refresh_key, critic_key = jax.random.split(key, 4)
    dist = jax.eval_shape(policy.act, params, state.core, state.obs, state.episodes.start)[1]
    noise = held_noise.for_steps(noise_key, dist, state.noise, num_steps)
    keys = jax.random.split(env_key, num_steps)
    cuts = no_cuts(num_steps, env, (state.core, state.obs))
    env_state = env.begin(state.env_state) if hasattr(env, "begin") else state.env_state
    carry = (env_state, state.obs, state.core, state.episodes, cuts, state.noise)
    step = functools.partial(_step, params=params, moments=state.moments, how=how)
    steps = (noise, keys, jnp.arange(num_steps))
    carry, rows = _scan(step, carry, steps, num_envs=env.num_envs)
    rows["core"] = jax.tree.map(lambda x: x[None], state.core)
    env_state, obs, core, episodes, cuts, held = carry

    values_of = functools.partial(_evaluate_critic, moments=state.moments, policy=policy)
    inputs, value, next_value = values_of(critic_key, params, rows, end=(core, obs), cuts=cuts)
    env_state, env_metrics = _refresh(env, refresh_key, env_state)
    rows.setdefault("valid", jnp.ones(rows["reward"].shape, bool))
    weight = rows["valid"].astype(jnp.float32)
    moments, reward = _update_moments(state.moments, rows, weight)
    # Credit also ends at a boundary within an episode (such as a point of a game) and at a failure.
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
    state = RolloutState(env_state, obs, core, moments, metrics, episodes, held)
    return state, trajectory, rows


def _scan(
    step: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    carry: Any,
    steps: Any,
    *,
    num_envs: int,
) -> tuple[Any, dict[str, Any]]:
    """Run the steps of a rollout: (carry, outputs of the steps with leaves [T, ...])."""
    if not backend.launch_bound():
        # With few environments the number of operations determines the time, and two steps in one
        # iteration share the operations of the loop.
        return jax.lax.scan(step, carry, steps, unroll=2 if num_envs <= FEW_ENVS else 1)

    def packed_step(carry: Any, at: Any) -> tuple[Any, packed.Packed]:
        carry, row = step(carry, at)
        return carry, packed.pack(row)

    carry, rows = jax.lax.scan(packed_step, carry, steps, unroll=4)
    return carry, packed.unpack(rows)


def _evaluate_critic(
    key: jax.Array,
    params: Params,
    rows: dict[str, Any],
    *,
    moments: Moments,
    policy: Policy,
    end: tuple[PyTree, PyTree],
    cuts: Cuts,
) -> tuple[PyTree, jax.Array, jax.Array]:
    """Compute the network's inputs and the critic's values: (inputs, value, next_value).

    A state-value critic returns V(s_t) and V(s_{t+1}). A Q-function returns q(s_t, a_t) and
    q(s_{t+1}, a'), where a' is sampled from the policy and never executed.
    """
    inputs = normalize_obs(moments, rows["obs"])
    if jax.tree.leaves(rows["core"]):
        inputs = SequenceInputs(inputs, rows["start"], rows["core"])
    num_steps = rows["reward"].shape[0]
    again_key, end_key, cut_key = jax.random.split(key, 3)
    value_of = _value_of(params, moments, policy)
    if policy.critic == "q":
        state_value = _value_of(params, Moments(), policy)  # the inputs are already normalised
        now = jax.vmap(state_value)(jax.random.split(again_key, num_steps), (), inputs)
        inputs = StateAction(inputs, rows["action"])
        value = mean_of(policy.apply(params, inputs)[1])
    else:
        # If one batched pass of the critic computes all values, the values computed in the loop
        # are unused, and XLA removes the critic from the loop.
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
            return mean_of(policy.apply(params, StateAction(obs, dist.sample(key)))[1])
        return value

    return value_of


def _before(abandoned: jax.Array) -> jax.Array:
    """[T, N] bool, the last valid steps of abandoned episodes. Their successor states are known:
    they are the states in which the abandoned steps started. The values are bootstrapped from them
    as at a time limit.
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
    """One step of all environments: (state after the step, outputs of the step)."""
    env_state, obs, core, episodes, cuts, held = carry
    given, key, time = step
    start = episodes.start
    core, dist, value = how.policy.act(params, core, normalize_obs(moments, obs), start)
    noise, held = held_noise.of_step(dist, held, given)
    action = dist.sample_from(noise)
    # The guard finds non-finite numbers afterwards; no environment receives them.
    taken = guard.finite_action(dist.to_env(action), how.env.action_space)
    watch.see("act", obs=obs, network=dist, value=value, action=action, taken=taken)
    next_obs, env_state, reward, terminated, truncated, info = how.env.step(key, env_state, taken)
    rewards = (reward, info.get("raw_reward", reward))
    done = terminated | truncated
    final = info["final_observation"]
    watch.see("step", reward=reward, done=done, obs=next_obs, final=final, valid=info["valid"])
    episodes, totals = advance(episodes, rewards, done, valid=info["valid"], gamma=how.gamma)
    # `fold_in(key, i)` with i = 0, 1, ... are the keys of the environments.
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
    # If all steps are valid, the mask is a constant and is not stored for each step.
    if not (isinstance(info["valid"], np.ndarray) and info["valid"].all()):
        row["valid"] = info["valid"]
    if "abandoned" in info:
        episodes = give_up(episodes, info["abandoned"])
    row |= {name: info[name] for name in ("settled", "abandoned", "shortened") if name in info}
    return (env_state, next_obs, core, episodes, cuts, held), row


def _if_used(
    start: jax.Array,
    value: jax.Array,
    totals: Episodes,
    *,
    moments: Moments,
    policy: Policy,
    core: PyTree,
) -> dict[str, Any]:
    """Outputs of a step that are used after the loop.

    XLA removes unused outputs by itself, except where outputs are packed.
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
    """[T, N, ...] -> [T·N, ...]: each step is one sample, for feed-forward policies."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def sequences(batch: Batch) -> Batch:
    """[T, N, ...] -> [N, T, ...]: the steps of each environment are one sequence, for recurrent
    policies.

    Steps keep their order, including those at which episodes begin; only the environments are
    shuffled. The initial recurrent state [1, N, ...] becomes [N, 1, ...].
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch)


def _refresh(env: VectorEnv, key: jax.Array, env_state: PyTree) -> tuple[PyTree, Metrics]:
    """The environment's own preparation for the next rollout, if it defines one."""
    refresh = getattr(env, "refresh", None)
    return refresh(key, env_state) if refresh else (env_state, {})


def _update_moments(
    moments: Moments, rows: dict[str, Any], weight: jax.Array
) -> tuple[Moments, jax.Array]:
    """Running statistics that include this rollout, and its rewards scaled by them."""
    obs, reward = moments.obs, rows["reward"]
    if obs != ():
        obs = normalization.update_tree(obs, rows["obs"], weight)
    if moments.reward == ():
        return Moments(obs, ()), reward
    returns = rows["totals"].discounted_return
    statistics = normalization.update(moments.reward, returns, weight)
    return Moments(obs, statistics), normalization.scale(statistics, reward)
