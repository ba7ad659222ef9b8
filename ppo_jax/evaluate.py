"""Playing whole episodes with a trained policy: returns, an interval, a GIF.

`python -m ppo_jax.evaluate RUN` is this on a run directory (`ppo_jax.cli`).
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike

from ppo_jax import guard, precision, rollout
from ppo_jax.envs import Env, makes_vectors, render
from ppo_jax.networks import Policy
from ppo_jax.types import Params, PyTree

# Environments end their episodes themselves; one that goes on longer than this is cut.
DEFAULT_MAX_STEPS = 10_000
# The number of programs, the last ones used, that stay compiled while their environments exist.
KEPT_PROGRAMS = 8
CONFIDENCE = 0.95


@struct.dataclass
class Returns:
    """What E episodes earned.

    Attributes:
        episode_return: [E] undiscounted, raw.
        episode_length: [E] steps.
        finished: [E] bool, False where the episode was still going on at max_steps.
        acted: [E] bool, False where the network gave an action that is not finite, in whose place
            the environment was given another one.
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
    """Play E episodes side by side, each to its own end.

    Args:
        key: consumed.
        params: of the policy.
        moments: the statistics it was trained with; they stay as they are.
        env: an Env, or a VectorMaker, which is played as it is evaluated, so many episodes at a
            time as it says.
        policy: acts.
        episodes: E.
        max_steps: cut an episode here; None: at its time limit or 10,000, whichever is more.
        greedy: the distribution's mode instead of a sample.

    Returns:
        Returns [E].
    """
    env = env.evaluation() if makes_vectors(env) else env
    if max_steps is None:
        max_steps = max(DEFAULT_MAX_STEPS, _time_limit(env))
    count = env.side_by_side(episodes) if makes_vectors(env) else episodes
    # Inside another program's trace, whose tracers must not outlive it, nothing is kept.
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((key, params, moments)))
    how: dict[str, Any] = {"episodes": count, "max_steps": max_steps, "greedy": greedy}
    play = _compiled(lambda: env, policy, **how) if traced else _kept_program(env, policy, **how)
    if not makes_vectors(env):
        return play(key, params, moments)
    keys = jax.random.split(key, -(-episodes // count))
    parts = [play(k, params, moments) for k in keys]
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:episodes], *parts)


# Programs of evaluations, the one used last at the end: what is played and how -> (a weak reference
# to the environment, the program).
_programs: collections.OrderedDict[Any, tuple[Any, Play]] = collections.OrderedDict()


def _kept_program(env: Any, policy: Policy, **how: Any) -> Play:
    """The program that plays episodes, compiled once for an environment and a policy.

    It is freed with the environment, to which it has a weak reference alone, and when KEPT_PROGRAMS
    others were used since.
    """
    # The program holds the policy, so that no other policy can have the identities of its parts.
    key = (id(env), *map(id, policy), *how.values())
    found = _programs.get(key)
    if found is not None and found[0]() is env:
        _programs.move_to_end(key)
        return found[1]
    try:
        here = weakref.ref(env, lambda _: _programs.pop(key, None))
    except TypeError:  # an object of the user's own that has no weak references
        return _compiled(lambda: env, policy, **how)
    program = _compiled(here, policy, **how)
    _programs[key] = here, program
    while len(_programs) > KEPT_PROGRAMS:
        _programs.popitem(last=False)
    return program


def _compiled(env: Callable[[], Any], policy: Policy, **how: Any) -> Play:
    """The program that plays episodes.

    Args:
        env: () -> the environment, called while the program is traced.
        policy: as for `evaluate`.
        **how: episodes, max_steps, greedy, as for `evaluate`.
    """

    def play(key: jax.Array, params: Params, moments: rollout.Moments) -> Returns:
        return _play(key, params, moments, env=env(), policy=policy, **how)

    # The policy has its precision; the environment is to compute as in training, too.
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
    """Episodes side by side, until the last one ends."""
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
        # An environment that failed and was replaced plays its episode again.
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
    """Refuse returns of episodes in which the network did not act.

    Args:
        result: of `evaluate`.
        env: that was played.

    Raises:
        FloatingPointError: an action was not finite.
    """
    wrong = np.flatnonzero(~np.asarray(result.acted))
    if wrong.size:
        name = getattr(env, "name", type(env).__name__)
        raise FloatingPointError(
            f"the network's action is not finite in {wrong.size} of {result.acted.size} episodes "
            f"of {name}, first in episode {wrong[0]}: its parameters are damaged, or the "
            "environment's observations are not finite; no return is that of the agent"
        )


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
    """Pictures of one episode, drawn by the environment.

    Args:
        key: consumed.
        params, moments, env, policy, greedy: as for `evaluate`.
        max_steps: pictures at most.

    Returns:
        Frames [H, W, 3] uint8.

    Raises:
        InvalidEnvironment: the environment cannot draw itself.
    """
    key, reset_key = jax.random.split(key)
    env = env.picture() if makes_vectors(env) else env
    # Of a vector environment given as an object all play, and the first is drawn.
    count = env.side_by_side(1) if makes_vectors(env) else 1
    one = _side_by_side(env, count)
    as_in_training = functools.partial(precision.apply, precision.of(policy.act))
    obs, state = as_in_training(one.reset)(reset_key)
    core = policy.init_core(count)
    frames = [render(one, state)]

    @jax.jit
    def step(key: jax.Array, carry: Any) -> Any:
        return _step(key, carry, params, moments, env=one, policy=policy, greedy=greedy)

    step = as_in_training(step)
    start = jnp.ones(count, bool)
    for step_key in jax.random.split(key, max_steps):
        core, obs, state, _, done, *_ = step(step_key, (core, obs, state, start))
        if done[0] and makes_vectors(env):
            break  # what is there to be seen is the next episode
        frames.append(render(one, state))
        start = jnp.zeros(count, bool)
        if done[0]:
            break
    return frames


def save_gif(frames: list[np.ndarray], path: Path, frames_per_second: int = 30) -> None:
    """Write frames as an endless GIF."""
    from PIL import Image

    images = [Image.fromarray(f) for f in frames]
    duration = 1000 // frames_per_second
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=True
    )


def confidence_interval(x: np.ndarray, agents: int = 1) -> tuple[float, float]:
    """The 95 % interval of a mean over independent games, Student's t.

    The agents of one game are not independent of each other: only games are. With G games of any
    number of rows, s² = G / (G − 1) · Σ_g (Σ_{i in g} (x_i − x̄))² / E², and the half-width is
    t_{0.975, G − 1} · s (for one row per game the usual interval of a mean).

    Args:
        x: [E] returns, those of a game side by side.
        agents: number of successive rows that belong to one game.

    Returns:
        (low, high); NaN where there is a single game, for which there is no interval.
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
    """The number of successive rows of an evaluation that play one game together."""
    return int(getattr(env, "num_agents", 1)) if makes_vectors(env) else 1


def summary_of(returns: ArrayLike, finished: ArrayLike, agents: int = 1) -> dict[str, Any]:
    """The numbers of an evaluation, as summary.json and the rows of metrics.jsonl have them.

    Args:
        returns: [E] undiscounted.
        finished: [E] bool, whether the episode came to its end.
        agents: number of successive rows that belong to one game.

    Returns:
        eval_return_mean, eval_return_std; the 95 % interval of the mean, eval_return_ci95_low and
        eval_return_ci95_high (None with a single game); eval_episodes, the number of them, and
        eval_episodes_cut, the number of those that were cut before their end.
    """
    # In float64: the square of a large float32 is infinite.
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
    """N of an Env that never restart, with the functions of a VectorEnv."""

    env: Env
    num_envs: int

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

    @property
    def name(self) -> str:
        return getattr(self.env, "name", type(self.env).__name__)

    @property
    def action_space(self) -> Any:
        return self.env.action_space

    def render(self, state: PyTree) -> np.ndarray:
        return render(self.env, jax.tree.map(lambda x: x[0], state))


def _side_by_side(env: Any, count: int) -> Any:
    """So many environments side by side. Vectors restart, which nobody looks at."""
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
    """(core, obs, state, reward, done, abandoned, whether the network acted) one step on."""
    core, obs, state, start = carry
    action_key, env_key = jax.random.split(key)
    core, dist, _ = policy.act(params, core, rollout.normalize_obs(moments, obs), start)
    drawn = dist.mode() if greedy else dist.sample(action_key)
    acted = guard.acted(dist, drawn)
    action = guard.finite_action(dist.to_env(drawn), env.action_space)
    obs, state, reward, terminated, truncated, info = env.step(env_key, state, action)
    done, abandoned = terminated | truncated, info.get("abandoned", False)
    return core, obs, state, info.get("raw_reward", reward), done, abandoned, acted


def warn_unfinished(finished: np.ndarray) -> None:
    """Say so where the returns of an evaluation are not those of whole episodes."""
    if not finished.all():
        cut = f"{(~finished).sum()} of {finished.size} episodes"
        warnings.warn(f"{cut} did not end and were cut: their returns are partial", stacklevel=2)


def warn_not_finite(returns: np.ndarray) -> None:
    """Say so where an evaluation has returns that are infinite or not a number."""
    bad = int((~np.isfinite(returns)).sum())
    if bad:
        warnings.warn(
            f"{bad} of {returns.size} episodes of the evaluation returned a number that is not "
            "finite: their mean is left out (null in summary.json). The rewards of the environment "
            "are too large, or not numbers",
            stacklevel=2,
        )


class _Callable(types.ModuleType):
    """This module as the function `ppo_jax.evaluate`."""

    def __call__(self, run: Any, episodes: int = 128, **options: Any) -> Returns:
        """As `ppo_jax.experiment.evaluate_run`."""
        from ppo_jax.experiment import evaluate_run

        return evaluate_run(run, episodes, **options)


sys.modules[__name__].__class__ = _Callable
