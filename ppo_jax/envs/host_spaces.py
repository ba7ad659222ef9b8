"""Gymnasium's spaces as ours, and the numpy arrays that travel between the two.

Nothing here touches JAX: the functions run inside a host callback, where using it can deadlock.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import InvalidEnvironment
from ppo_jax.types import PyTree

# A frame of bytes with so many planes in front is [C, H, W]; longer first axes are heights.
MOST_CHANNELS = 4


class Leaf(NamedTuple):
    """One array of an observation.

    Attributes:
        path: keys and indices that lead to it in what Gymnasium returns.
        space: one of ours.
        read: [B, ...] as Gymnasium has it -> [B, *space.shape] of space.dtype.
    """

    path: tuple[Any, ...]
    space: spaces.Space
    read: Callable[[np.ndarray], np.ndarray]

    def of(self, value: Any) -> Any:
        """This leaf of a whole observation."""
        for key in self.path:
            value = value[key]
        return value


def observation_leaves(space: Any, name: str, path: tuple[Any, ...] = ()) -> PyTree:
    """The leaves of an observation space, in its own structure.

    float64 becomes float32, integers but bytes int32, frames [C, H, W] become [H, W, C], a
    Discrete that starts elsewhere starts at 0, and an entry `action_mask` is bool.

    Args:
        space: Gymnasium's, of one environment.
        name: of the environment, for messages.
        path: that led here.

    Returns:
        Leaf; or a dict or tuple of what is below, for Dict and Tuple.

    Raises:
        InvalidEnvironment: a space whose values have no fixed shape (Text, Graph, Sequence, OneOf).
    """
    from gymnasium import spaces as theirs

    if isinstance(space, theirs.Dict):
        parts = {k: observation_leaves(s, name, (*path, k)) for k, s in space.spaces.items()}
        if "action_mask" in parts:
            parts["action_mask"] = _mask(parts["action_mask"])
        return parts
    if isinstance(space, theirs.Tuple):
        return tuple(observation_leaves(s, name, (*path, i)) for i, s in enumerate(space.spaces))
    if isinstance(space, theirs.Discrete):
        return Leaf(path, spaces.Discrete(int(space.n)), _shifted(int(space.start), ()))
    if isinstance(space, theirs.MultiDiscrete):
        sizes = tuple(int(n) for n in space.nvec.reshape(-1))
        start = np.asarray(getattr(space, "start", 0)).reshape(-1)
        return Leaf(path, spaces.MultiDiscrete(sizes), _shifted(start, (len(sizes),)))
    if isinstance(space, theirs.MultiBinary):
        size = int(np.prod(space.shape))
        return Leaf(path, spaces.MultiBinary(size), _shifted(0, (size,)))
    if isinstance(space, theirs.Box):
        return _box(space, path)
    where = "".join(f"[{key!r}]" for key in path)
    raise InvalidEnvironment(
        f"observations{where} of {name} are {space}, whose values have no fixed shape; there are "
        "networks for Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them: wrap "
        "the environment in one that returns these"
    )


def action_space(space: Any, name: str) -> tuple[spaces.Space, Callable[[np.ndarray], np.ndarray]]:
    """(our space, actions [N, *its shape] -> actions as Gymnasium takes them).

    Raises:
        InvalidEnvironment: a space that no distribution of ours covers.
    """
    from gymnasium import spaces as theirs

    if isinstance(space, theirs.Discrete):
        start = int(space.start)
        return spaces.Discrete(int(space.n)), lambda a: a.astype(np.int64) + start
    if isinstance(space, theirs.MultiDiscrete):
        shape, first = space.nvec.shape, np.asarray(getattr(space, "start", 0))
        sizes = tuple(int(n) for n in space.nvec.reshape(-1))
        return spaces.MultiDiscrete(sizes), lambda a: a.astype(np.int64).reshape(-1, *shape) + first
    if isinstance(space, theirs.MultiBinary):
        size, shape = int(np.prod(space.shape)), space.shape
        return spaces.MultiBinary(size), lambda a: a.astype(np.int8).reshape(-1, *shape)
    if isinstance(space, theirs.Box) and np.issubdtype(space.dtype, np.floating):
        dtype, (low, high) = space.dtype, _bounds(space)
        return spaces.Box(low, high, tuple(space.shape)), lambda a: np.clip(
            a.astype(dtype), space.low, space.high
        )
    raise InvalidEnvironment(
        f"the actions of {name} are {space}; there are distributions for Discrete, MultiDiscrete, "
        "MultiBinary and Box of floats: wrap the environment in one that takes these"
    )


def _box(space: Any, path: tuple[Any, ...]) -> Leaf:
    low, high = _bounds(space)
    shape, dtype = tuple(space.shape), _dtype(space.dtype)
    frame = space.dtype == np.uint8 and len(shape) == 3 and shape[0] <= MOST_CHANNELS
    if frame and shape[0] < min(shape[1:]) and shape[-1] > MOST_CHANNELS:
        box = spaces.Box(np.moveaxis(low, 0, -1), np.moveaxis(high, 0, -1), shape[1:] + shape[:1])
        box = spaces.Box(box.low, box.high, box.shape, dtype)
        return Leaf(path, box, lambda x: np.moveaxis(np.asarray(x, dtype), 1, -1))
    return Leaf(path, spaces.Box(low, high, shape, dtype), lambda x: np.asarray(x, dtype))


def _bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that the 32-bit type can hold; what is beyond it is unbounded."""
    low, high, dtype = space.low, space.high, _dtype(space.dtype)
    if dtype == np.float32:
        largest = np.finfo(np.float32).max
        low = np.where(low <= -largest, -np.inf, low)
        high = np.where(high >= largest, np.inf, high)
    elif dtype == np.int32:
        limits = np.iinfo(np.int32)
        low, high = np.clip(low, limits.min, limits.max), np.clip(high, limits.min, limits.max)
    return np.asarray(low, dtype), np.asarray(high, dtype)


def _dtype(dtype: Any) -> Any:
    """What JAX, without 64 bits, holds it in."""
    if np.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    return np.dtype(dtype if dtype in (np.uint8, np.bool_) else np.int32)


def _shifted(start: Any, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Integers from 0 on, [B, *shape] int32."""
    return lambda x: (np.asarray(x).reshape(-1, *shape) - start).astype(np.int32)


def _mask(leaf: Leaf) -> Leaf:
    """Which actions are legal, whatever numbers the environment says it in."""
    shape = leaf.space.shape
    box = spaces.Box(False, True, shape, np.bool_)
    return Leaf(leaf.path, box, lambda x: np.asarray(x).reshape(-1, *shape) != 0)
