"""Evaluation of a trained policy over whole episodes: returns, confidence interval, GIF.

`python -m ppo_jax.evaluate RUN` evaluates a run directory (`ppo_jax.cli`).
"""

if __name__ == "__main__":  # a command line is read before JAX is imported
    from ppo_jax.cli.evaluate import main

    main()

import collections
import dataclasses
import functools
import math
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike

from ppo_jax import guard, precision, rollout
from ppo_jax.envs import Env, makes_vectors, render, spaces
from ppo_jax.envs.protocol import delegated, display_name
from ppo_jax.networks import Policy
from ppo_jax.types import Params, PyTree

# Most environments end their episodes; an episode that takes longer is cut after this many steps.
DEFAULT_MAX_STEPS = 10_000
# Number of recently used programs that stay compiled while their environments exist.
KEPT_PROGRAMS = 8
CONFIDENCE = 0.95


@struct.dataclass
class Returns:
    """The returns of E episodes.

    Attributes:
        episode_return: [E] undiscounted returns of raw rewards.
        episode_length: [E] numbers of steps.
        finished: [E] bool, False if the episode was cut at max_steps.
        acted: [E] bool, False if an action of the network was not finite, in which case the
            environment received another action.
    """

    episode_return: jax.Array
    episode_length: jax.Array
    finished: jax.Array
    acted: jax.Array


Play = Callable[[jax.Array, Params, rollout.Moments], Returns]


def evaluate(
    key: jax.Array,
    params: Params,
    moments: rollout.Moments,
    *,
    env: Any,
    policy: Policy,
    episodes: int = 128,
    max_steps: int | None = None,
    greedy: bool = True,
) -> Returns:
    """Run E episodes in parallel, each to its own end.

    Args:
        key: PRNG key.
        params: parameters of the policy.
        moments: running statistics of the training run, which are not updated.
        env: an Env, or a VectorMaker, which defines its own variant for evaluation and the number
            of parallel episodes.
        policy: policy that chooses the actions.
        episodes: number E of episodes.
        max_steps: number of steps after which an episode is cut; None for the time limit of the
            environment or 10,000, whichever is larger.
        greedy: whether to take the mode of the action distribution rather than a sample.

    Returns:
        Returns with leaves [E].
    """
    env = env.evaluation() if makes_vectors(env) else env
    if max_steps is None:
        max_steps = max(DEFAULT_MAX_STEPS, _time_limit(env))
    count = env.side_by_side(episodes) if makes_vectors(env) else episodes
    # Tracers must not outlive an enclosing trace, so no program is kept inside one.
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((key, params, moments)))
    how: dict[str, Any] = {"episodes": count, "max_steps": max_steps, "greedy": greedy}
    play = _compiled(lambda: env, policy, **how) if traced else _kept_program(env, policy, **how)
    if not makes_vectors(env):
        return play(key, params, moments)
    keys = jax.random.split(key, -(-episodes // count))
    parts = [play(k, params, moments) for k in keys]
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:episodes], *parts)


# Compiled programs of evaluations, the most recently used one last: key -> (weak reference to the
# environment, program).
_programs: collections.OrderedDict[Any, tuple[Any, Play]] = collections.OrderedDict()


def _kept_program(env: Any, policy: Policy, **how: Any) -> Play:
    """The program that runs the episodes, compiled once for each environment and policy.

    It holds only a weak reference to the environment. It is freed with the environment, or after
    KEPT_PROGRAMS other programs were used.
    """
    # The program keeps the policy alive, so that no other policy can reuse the ids of its parts.
    key = (id(env), *map(id, policy), *how.values())
    found = _programs.get(key)
    if found is not None and found[0]() is env:
        _programs.move_to_end(key)
        return found[1]
    try:
        here = weakref.ref(env, lambda _: _programs.pop(key, None))
    except TypeError:  # objects of some classes do not support weak references
        return _compiled(lambda: env, policy, **how)
    program = _compiled(here, policy, **how)
    _programs[key] = here, program
    while len(_programs) > KEPT_PROGRAMS:
        _programs.popitem(last=False)
    return program


def _compiled(env: Callable[[], Any], policy: Policy, **how: Any) -> Play:
    """The program that runs the episodes.

    Args:
        env: function that returns the environment, called while the program is traced.
        policy: policy, as for `evaluate`.
        **how: arguments episodes, max_steps and greedy of `evaluate`.
    """

    def play(key: jax.Array, params: Params, moments: rollout.Moments) -> Returns:
        return _play(key, params, moments, env=env(), policy=policy, **how)

    # The policy already has its precision; the environment must use the precision of training.
    return precision.apply(precision.of(policy.act), jax.jit(play))


def _play(
    key: jax.Array,
    params: Params,
    moments: rollout.Moments,
    *,
    env: Any,
    policy: Policy,
    episodes: int,
    max_steps: int,
    greedy: bool,
) -> Returns:
    """Run episodes in parallel until the last one ends."""
    env = _side_by_side(env, episodes)
    key, reset_key = jax.random.split(key)
    obs, state = env.reset(reset_key)
    core = policy.init_core(episodes)
    zeros = jnp.zeros(episodes)
    result = Returns(zeros, jnp.zeros(episodes, jnp.int32), *_flags(episodes))

    def unfinished(carry: Any) -> jax.Array:
        return (carry[0] < max_steps) & ~jnp.all(carry[-1].finished)

    def step(carry: Any) -> Any:
        time, key, obs, state, core, result = carry
        key, step_key = jax.random.split(key)
        start = jnp.broadcast_to(time == 0, (episodes,))
        before = (core, obs, state, start)
        core, obs, state, reward, done, abandoned, acted = _step(
            step_key, before, params, moments, env=env, policy=policy, greedy=greedy
        )
        alive = ~result.finished
        # An environment that failed and was replaced repeats its episode.
        again = alive & abandoned
        result = Returns(
            jnp.where(again, 0.0, result.episode_return + jnp.where(alive, reward, 0.0)),
            jnp.where(again, 0, result.episode_length + alive),
            result.finished | done,
            result.acted & (acted | ~alive),
        )
        return time + 1, key, obs, state, core, result

    carry = (jnp.zeros((), jnp.int32), key, obs, state, core, result)
    return jax.lax.while_loop(unfinished, step, carry)[-1]


def _flags(episodes: int) -> tuple[jax.Array, jax.Array]:
    """(finished, acted) before the first step."""
    return jnp.zeros(episodes, bool), jnp.ones(episodes, bool)


def check_acted(result: Returns, env: Any) -> None:
    """Reject returns of episodes in which an action of the network was not finite.

    Args:
        result: result of `evaluate`.
        env: environment of the evaluation.

    Raises:
        FloatingPointError: if an action was not finite.
    """
    wrong = np.flatnonzero(~np.asarray(result.acted))
    if wrong.size:
        name = display_name(env)
        raise FloatingPointError(
            f"the network's action is not finite in {wrong.size} of {result.acted.size} episodes "
            f"of {name}, first in episode {wrong[0]}: the parameters are damaged, or the "
            "environment's observations are not finite. The returns are not those of the agent"
        )


class Frame(NamedTuple):
    """One state of an episode that is drawn.

    Attributes:
        image: image [H, W, 3] uint8; None if the environment has reset itself, so that it cannot
            draw the end of the episode.
        episode_return: undiscounted return so far.
        done: whether the episode has ended.
    """

    image: np.ndarray | None
    episode_return: float
    done: bool


def watch(
    key: jax.Array,
    params: Params,
    moments: rollout.Moments,
    *,
    env: Any,
    policy: Policy,
    max_steps: int = 1000,
    greedy: bool = True,
) -> Iterator[Frame]:
    """Run one episode and draw each of its states when it is reached.

    Args:
        key: PRNG key.
        params, moments, env, policy, greedy: arguments as for `evaluate`.
        max_steps: maximum number of steps.

    Yields:
        Frame of the first state, and one after each step.

    Raises:
        InvalidEnvironment: if the environment cannot draw images.
    """
    key, reset_key = jax.random.split(key)
    env = env.picture() if makes_vectors(env) else env
    # In a vector environment given as an object, all environments act and the first is drawn.
    count = env.side_by_side(1) if makes_vectors(env) else 1
    one = _side_by_side(env, count)
    as_in_training = functools.partial(precision.apply, precision.of(policy.act))
    obs, state = as_in_training(one.reset)(reset_key)
    core = policy.init_core(count)
    yield Frame(render(one, state), 0.0, False)

    @jax.jit
    def step(key: jax.Array, carry: Any) -> Any:
        return _step(key, carry, params, moments, env=one, policy=policy, greedy=greedy)

    step, total = as_in_training(step), 0.0
    start = jnp.ones(count, bool)
    for step_key in jax.random.split(key, max_steps):
        core, obs, state, reward, done, *_ = step(step_key, (core, obs, state, start))
        total, ended = total + float(reward[0]), bool(done[0])
        # After its end, a vector environment would draw the first state of the next episode.
        gone = ended and makes_vectors(env)
        yield Frame(None if gone else render(one, state), total, ended)
        if ended:
            return
        start = jnp.zeros(count, bool)


def record(
    key: jax.Array,
    params: Params,
    moments: rollout.Moments,
    *,
    env: Any,
    policy: Policy,
    max_steps: int = 1000,
    greedy: bool = True,
) -> list[np.ndarray]:
    """Record images of one episode, drawn by the environment.

    Args:
        key, params, moments, env, policy, max_steps, greedy: arguments as for `watch`.

    Returns:
        List of images [H, W, 3] uint8.

    Raises:
        InvalidEnvironment: if the environment cannot draw images.
    """
    how: dict[str, Any] = {"env": env, "policy": policy, "max_steps": max_steps, "greedy": greedy}
    frames = watch(key, params, moments, **how)
    return [frame.image for frame in frames if frame.image is not None]


def save_gif(frames: list[np.ndarray], path: Path, frames_per_second: int = 30) -> None:
    """Save frames as an animated GIF that repeats forever."""
    from PIL import Image

    images = [Image.fromarray(f) for f in frames]
    duration = 1000 // frames_per_second
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=True
    )


def confidence_interval(x: np.ndarray, agents: int = 1) -> tuple[float, float]:
    """The 95 % confidence interval of a mean over independent games, by Student's t.

    Agents of one game are not independent of each other; only games are. For G games with any
    number of agents, s² = G / (G − 1) · Σ_g (Σ_{i in g} (x_i − x̄))² / E², and the half-width is
    t_{0.975, G − 1} · s. With one agent per game this is the usual interval of a mean.

    Args:
        x: [E] returns, with those of one game in succession.
        agents: number of successive returns that belong to one game.

    Returns:
        (low, high); NaN for a single game, which has no interval.
    """
    from scipy import stats

    x = np.asarray(x, np.float64)
    centre, games = float(np.mean(x)), -(-len(x) // agents)
    if games < 2 or not np.isfinite(x).all():
        return math.nan, math.nan
    sums = np.add.reduceat(x - centre, np.arange(0, len(x), agents))
    error = math.sqrt(games / (games - 1) * float(np.sum(sums**2))) / len(x)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, games - 1)) * error
    return centre - half, centre + half


def agents_of(env: Any) -> int:
    """The number of successive returns of an evaluation that belong to one game."""
    return int(getattr(env, "num_agents", 1)) if makes_vectors(env) else 1


def summary_of(returns: ArrayLike, finished: ArrayLike, agents: int = 1) -> dict[str, Any]:
    """The numbers of an evaluation, as in summary.json and the rows of metrics.jsonl.

    Args:
        returns: [E] undiscounted returns.
        finished: [E] bool, whether the episode ended by itself.
        agents: number of successive returns that belong to one game.

    Returns:
        Dictionary with eval_return_mean and eval_return_std; eval_return_ci95_low and
        eval_return_ci95_high, the 95 % confidence interval of the mean (None for a single game);
        eval_episodes, the number of episodes; and eval_episodes_cut, the number of episodes that
        were cut before their end.
    """
    # float64, because the square of a large float32 overflows.
    returns = np.asarray(returns, np.float64)
    low, high = confidence_interval(returns, agents)
    with np.errstate(invalid="ignore"):
        mean, std = float(returns.mean()), float(returns.std())
    return {
        "eval_return_mean": mean,
        "eval_return_std": std,
        "eval_return_ci95_low": None if math.isnan(low) else low,
        "eval_return_ci95_high": None if math.isnan(high) else high,
        "eval_episodes": len(returns),
        "eval_episodes_cut": int((~np.asarray(finished, bool)).sum()),
    }


def _time_limit(env: Any) -> int:
    limit = env.time_limit
    return 0 if limit is None or math.isinf(limit) else int(limit)


@dataclasses.dataclass(frozen=True)
class _Copies:
    """N copies of an Env without automatic reset, with the functions of a VectorEnv."""

    env: Env
    num_envs: int

    name = property(lambda self: display_name(self.env))
    action_space = delegated("action_space")

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(key, self.num_envs)
        started = jax.vmap(self.env.reset, in_axes=(0, None))(keys, self.env.params)
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), started)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> Any:
        action = action.reshape(self.num_envs, *self.env.action_space.shape)

        def one(key: jax.Array, state: PyTree, action: jax.Array) -> Any:
            return self.env.step(key, state, action, self.env.params)[:5]

        keys = jax.random.split(key, self.num_envs)
        obs, new_state, *rest = jax.vmap(one)(keys, state, action)
        new_state = jax.tree.map(lambda old, new: new.astype(old.dtype), state, new_state)
        return obs, new_state, *rest, {}

    def render(self, state: PyTree) -> np.ndarray:
        return render(self.env, jax.tree.map(lambda x: x[0], state))


def _side_by_side(env: Any, count: int) -> Any:
    """N environments in parallel. Vector environments reset themselves after their first episodes,
    and these later episodes are ignored."""
    return env.vector(count) if makes_vectors(env) else _Copies(env, count)


def _step(
    key: jax.Array,
    carry: tuple[PyTree, PyTree, PyTree, jax.Array],
    params: Params,
    moments: rollout.Moments,
    *,
    env: Any,
    policy: Policy,
    greedy: bool,
) -> tuple[PyTree, ...]:
    """One step: (core, obs, state, reward, done, abandoned, whether the action was finite)."""
    core, obs, state, start = carry
    action_key, env_key = jax.random.split(key)
    alone = spaces.without_critic_observation  # a deployed agent has no statistics of the entry
    moments = dataclasses.replace(moments, obs=alone(moments.obs))
    core, dist, _ = policy.act(params, core, rollout.normalize_obs(moments, alone(obs)), start)
    drawn = dist.mode() if greedy else dist.sample(action_key)
    acted = guard.acted(dist, drawn)
    action = guard.finite_action(dist.to_env(drawn), env.action_space)
    obs, state, reward, terminated, truncated, info = env.step(env_key, state, action)
    done, abandoned = terminated | truncated, info.get("abandoned", False)
    return core, obs, state, info.get("raw_reward", reward), done, abandoned, acted


def warn_unfinished(finished: np.ndarray) -> None:
    """Warn if the returns of an evaluation are not those of whole episodes."""
    if not finished.all():
        cut = f"{(~finished).sum()} of {finished.size} episodes"
        warnings.warn(f"{cut} did not end and were cut: their returns are partial", stacklevel=2)


def warn_not_finite(returns: np.ndarray) -> None:
    """Warn if returns of an evaluation are infinite or NaN."""
    bad = int((~np.isfinite(returns)).sum())
    if bad:
        warnings.warn(
            f"the returns of {bad} of {returns.size} evaluation episodes are not finite, so their "
            "mean is left out (null in summary.json). The rewards of the environment are too large "
            "or not finite",
            stacklevel=2,
        )


class _Callable(types.ModuleType):
    """This module, callable as the function `ppo_jax.evaluate`."""

    def __call__(self, run: Any, episodes: int = 128, **options: Any) -> Returns:
        """Call `ppo_jax.experiment.evaluate_run`."""
        from ppo_jax.experiment import evaluate_run

        return evaluate_run(run, episodes, **options)


sys.modules[__name__].__class__ = _Callable
