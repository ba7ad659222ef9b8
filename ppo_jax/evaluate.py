"""Playing whole episodes with a trained policy: returns, an interval, a GIF.

`python -m ppo_jax.evaluate RUN` is this on a run directory (`ppo_jax.cli`).
"""

import dataclasses
import functools
import math
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax import precision, rollout
from ppo_jax.envs import Env, makes_vectors, render
from ppo_jax.networks import Policy
from ppo_jax.types import Params, PyTree

# Environments end their episodes themselves; one that goes on longer than this is cut.
DEFAULT_MAX_STEPS = 10_000


@struct.dataclass
class Returns:
    """What E episodes earned.

    Attributes:
        episode_return: [E] undiscounted, raw.
        episode_length: [E] steps.
        finished: [E] bool, False where the episode was still going on at max_steps.
    """

    episode_return: jax.Array
    episode_length: jax.Array
    finished: jax.Array


class _Same:
    """Something static to a compiled program whether it can be hashed or not."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


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
    play = functools.partial(
        _play, boxed=_Same(env), policy=policy, max_steps=max_steps, greedy=greedy
    )
    # The policy has its precision; the environment is to compute as in training, too.
    play = precision.apply(precision.of(policy.act), play)
    if not makes_vectors(env):
        return play(key, params, moments, episodes=episodes)
    count = env.side_by_side(episodes)
    keys = jax.random.split(key, -(-episodes // count))
    parts = [play(k, params, moments, episodes=count) for k in keys]
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:episodes], *parts)


@functools.partial(jax.jit, static_argnames=("boxed", "policy", "episodes", "max_steps", "greedy"))
def _play(
    key: jax.Array,
    params: Params,
    moments: rollout.Moments,
    *,
    boxed: _Same,
    policy: Policy,
    episodes: int,
    max_steps: int,
    greedy: bool,
) -> Returns:
    env = _side_by_side(boxed.value, episodes)
    key, reset_key = jax.random.split(key)
    obs, state = env.reset(reset_key)
    core = policy.init_core(episodes)
    zeros = jnp.zeros(episodes)
    result = Returns(zeros, jnp.zeros(episodes, jnp.int32), jnp.zeros(episodes, bool))

    def unfinished(carry: Any) -> jax.Array:
        return (carry[0] < max_steps) & ~jnp.all(carry[-1].finished)

    def step(carry: Any) -> Any:
        time, key, obs, state, core, result = carry
        key, step_key = jax.random.split(key)
        start = jnp.broadcast_to(time == 0, (episodes,))
        before = (core, obs, state, start)
        core, obs, state, reward, done, abandoned = _step(
            step_key, before, params, moments, env=env, policy=policy, greedy=greedy
        )
        alive = ~result.finished
        # An environment that failed and was replaced plays its episode again.
        again = alive & abandoned
        result = Returns(
            jnp.where(again, 0.0, result.episode_return + jnp.where(alive, reward, 0.0)),
            jnp.where(again, 0, result.episode_length + alive),
            result.finished | done,
        )
        return time + 1, key, obs, state, core, result

    carry = (jnp.zeros((), jnp.int32), key, obs, state, core, result)
    return jax.lax.while_loop(unfinished, step, carry)[-1]


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
        core, obs, state, _, done, _ = step(step_key, (core, obs, state, start))
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


def confidence_interval(x: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean over independent episodes, normal approximation."""
    half = 1.96 * float(np.std(x, ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return float(np.mean(x)) - half, float(np.mean(x)) + half


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
    """(core, obs, state, reward, done, abandoned) one step on."""
    core, obs, state, start = carry
    action_key, env_key = jax.random.split(key)
    core, dist, _ = policy.act(params, core, rollout.normalize_obs(moments, obs), start)
    action = dist.to_env(dist.mode() if greedy else dist.sample(action_key))
    obs, state, reward, terminated, truncated, info = env.step(env_key, state, action)
    done, abandoned = terminated | truncated, info.get("abandoned", False)
    return core, obs, state, info.get("raw_reward", reward), done, abandoned


def warn_unfinished(finished: np.ndarray) -> None:
    """Say so where the returns of an evaluation are not those of whole episodes."""
    if not finished.all():
        cut = f"{(~finished).sum()} of {finished.size} episodes"
        warnings.warn(f"{cut} did not end and were cut: their returns are partial", stacklevel=2)


class _Callable(types.ModuleType):
    """This module as the function `ppo_jax.evaluate`."""

    def __call__(self, run: Any, episodes: int = 128, **options: Any) -> Returns:
        """As `ppo_jax.experiment.evaluate_run`."""
        from ppo_jax.experiment import evaluate_run

        return evaluate_run(run, episodes, **options)


if __name__ == "__main__":
    from ppo_jax.cli.evaluate import main

    main()
else:
    sys.modules[__name__].__class__ = _Callable
