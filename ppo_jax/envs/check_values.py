"""Values of spaces: actions at the edges, random actions, and values outside a space."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.types import PyTree

# A discrete space with at most this number of actions is tried completely, a larger one in part.
ALL = 64
# Bounds that replace infinite ones, for a random action.
WIDE = 3.0


def corners(space: spaces.Space) -> np.ndarray:
    """[K, *shape] actions at the edges of a space: all of a small Discrete, the corners of a Box.

    Args:
        space: space from `ppo_jax.envs.spaces`.
    """
    if isinstance(space, spaces.Discrete):
        values = range(space.n) if space.n <= ALL else (*range(ALL // 2), space.n - 1)
        return np.asarray(values, space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(_combinations([(0, n - 1) for n in space.sizes]), space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return np.asarray(_combinations([(0, 1)] * space.n), space.dtype)
    low, high = finite_bounds(space)
    flat = list(zip(low.ravel(), high.ravel(), strict=True))
    found = [np.asarray(c).reshape(space.shape) for c in _combinations(flat)]
    return np.asarray([*found, (low + high) / 2], space.dtype)


def _combinations(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, ...]]:
    """All choices of one element from each pair; for many pairs only some of them."""
    if 2 ** len(pairs) <= ALL:
        return list(dict.fromkeys(itertools.product(*pairs)))
    lows, highs = (tuple(p[i] for p in pairs) for i in (0, 1))
    alone = [lows[:i] + highs[i : i + 1] + lows[i + 1 :] for i in range(min(len(pairs), ALL))]
    return [lows, highs, *alone]


def finite_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of a Box; an infinite bound is replaced by ±3, or 6 away from the other one."""
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    bottom = np.where(np.isfinite(high), np.minimum(high - 2 * WIDE, -WIDE), -WIDE)
    low = np.where(np.isfinite(low), low, bottom)
    return low, np.where(np.isfinite(high), high, np.maximum(low + 2 * WIDE, WIDE))


def sampler(
    observation_space: PyTree, action_space: spaces.Space
) -> Callable[[jax.Array, PyTree], jax.Array]:
    """A function (key, obs) -> random action, which is legal if the observation has a mask.

    Args:
        observation_space: observation space, with or without an action mask.
        action_space: space from `ppo_jax.envs.spaces`.
    """
    masked = spaces.action_mask(observation_space) is not None
    dtype = action_space.dtype

    def draw(key: jax.Array, obs: PyTree) -> jax.Array:
        if isinstance(action_space, spaces.Box):
            low, high = finite_bounds(action_space)
            share = jax.random.uniform(key, action_space.shape)
            return (low + share * (high - low)).astype(dtype)
        if isinstance(action_space, spaces.MultiBinary):
            return jax.random.bernoulli(key, shape=action_space.shape).astype(dtype)
        several = isinstance(action_space, spaces.MultiDiscrete)
        sizes: Any = getattr(action_space, "sizes", None)
        joint = getattr(action_space, "joint", False)
        shape: Any = spaces.mask_shape(action_space)
        logits = jnp.zeros(shape)
        if several and not joint:
            logits = jnp.where(np.arange(shape[1]) < np.asarray(sizes)[:, None], logits, -jnp.inf)
        if masked:
            logits = jnp.where(spaces.action_mask(obs), logits, -jnp.inf)
        if joint:
            index = jax.random.categorical(key, logits.ravel())
            return jnp.stack(jnp.unravel_index(index, sizes)).astype(dtype)
        return jax.random.categorical(key, logits).reshape(action_space.shape).astype(dtype)

    return draw


def outside(space: PyTree, obs: PyTree) -> Iterator[tuple[str, str]]:
    """Problems of the values of an observation.

    Args:
        space: pytree of spaces.
        obs: [B..., ...] observations of the same structure.

    Yields:
        (path of the leaf, second part of a sentence).
    """
    found = jax.tree_util.tree_leaves_with_path(obs)
    for (path, x), leaf in zip(found, jax.tree.leaves(space), strict=False):
        rank = len(leaf.shape)
        if np.ndim(x) < rank or np.shape(x)[np.ndim(x) - rank :] != leaf.shape:
            continue  # the check of shapes reports this
        problem = _outside(leaf, np.asarray(x))
        if problem:
            yield jax.tree_util.keystr(path), problem


def _outside(space: spaces.Space, x: np.ndarray) -> str | None:
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = x[~np.isfinite(x)][0]
        return f"holds {bad}; look for a division by 0, log or sqrt, and for unbounded growth"
    if isinstance(space, spaces.Box):
        low, high = (np.asarray(b, np.float64) for b in (space.low, space.high))
    else:
        sizes = getattr(space, "sizes", getattr(space, "n", 2))
        low, high = (
            np.zeros(()),
            np.asarray(2 if isinstance(space, spaces.MultiBinary) else sizes) - 1,
        )
    size = [np.where(np.isfinite(b), abs(b), 0.0) for b in (low, high)]
    rounding = 1e-5 if x.dtype.kind == "f" else 0.0
    slack = rounding * np.maximum(1.0, np.maximum(size[0], size[1]))
    wrong = (x < low - slack) | (x > high + slack)
    if not wrong.any():
        return None
    least, most = (np.broadcast_to(b, x.shape)[wrong].flat[0] for b in (low, high))
    value = x[wrong].flat[0]
    return (
        f"holds {value:.6g}, outside its space, which is [{least:.6g}, {most:.6g}] there; correct "
        "the bounds of observation_space, or the observation"
    )


def a_type(x: Any) -> str:
    """The type of a value with its article: "an int", "a list"."""
    name = type(x).__name__
    return f"{'an' if name[0] in 'aeiou' or name == 'ndarray' else 'a'} {name}"
