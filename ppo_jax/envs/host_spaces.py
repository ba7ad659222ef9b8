"""Gymnasium's spaces as ours, and the arrays that travel between the two.

What is read and written in numpy touches no JAX: it runs inside a host callback, where using it can
deadlock. The same descriptions serve exported programs, which compute in jax.numpy.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.envs.codec import INT32, OBSERVATION, Action, Codec, Leaf, Port, follow, narrowed
from ppo_jax.envs.mask_layouts import MaskLayout, arrays_of, layout_of
from ppo_jax.envs.protocol import InvalidEnvironment
from ppo_jax.envs.spaces import ACTION_MASK
from ppo_jax.types import PyTree

# A frame with so many planes in front is [C, H, W]; a longer first axis is a height.
MOST_CHANNELS = 4
CHANNELS = ("auto", "first", "last")


def observation_leaves(
    space: Any, name: str, path: tuple[Any, ...] = (), *, channels: str = "auto"
) -> PyTree:
    """The leaves of an observation space, in its own structure.

    float64 becomes float32, integers but bytes int32 or, where their bounds exceed it, float32;
    images [C, H, W] become [H, W, C], a Discrete that starts elsewhere starts at 0, and an entry
    `action_mask` at the top is bool.

    Args:
        space: Gymnasium's, of one environment.
        name: of the environment, for messages.
        path: that led here.
        channels: where those of images are: name in CHANNELS; auto: as the shape says.

    Returns:
        Leaf; or a dict or tuple of what is below, for Dict and Tuple.

    Raises:
        InvalidEnvironment: a space whose values have no fixed shape (Text, Graph, Sequence, OneOf)
            and that is not one entry among others, or a choice among more than 2³¹.
    """
    from gymnasium import spaces as theirs

    if isinstance(space, theirs.Dict | theirs.Tuple):
        items = space.spaces.items() if isinstance(space, theirs.Dict) else enumerate(space.spaces)
        parts: dict[Any, Any] = {}
        for key, part in _with_shape(items, name, path):
            here = (*path, key)
            mask = here == (ACTION_MASK,) and not isinstance(part, theirs.Dict | theirs.Tuple)
            parts[key] = (
                _mask(part, here)
                if mask
                else observation_leaves(part, name, here, channels=channels)
            )
        return parts if isinstance(space, theirs.Dict) else tuple(parts.values())
    where = f"observations{''.join(f'[{key!r}]' for key in path)} of {name}"
    if isinstance(space, theirs.Discrete):
        return _choices(path, space, spaces.Discrete(int(space.n)), where)
    if isinstance(space, theirs.MultiDiscrete):
        sizes = tuple(int(n) for n in space.nvec.reshape(-1))
        return _choices(path, space, spaces.MultiDiscrete(sizes), where)
    if isinstance(space, theirs.MultiBinary):
        return _bits(path, space, where)
    if isinstance(space, theirs.Box):
        return _box(path, space, where, channels)
    raise InvalidEnvironment(
        f"{where} are {space}, whose values have no fixed shape; there are "
        "networks for Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them: wrap "
        "the environment in one that returns these"
    )


def _with_shape(items: Any, name: str, path: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """The entries of a Dict or Tuple that a network can be given: a text beside them, as the
    mission of MiniGrid, is left out, and a warning says so."""
    from gymnasium import spaces as theirs

    known = theirs.Box | theirs.Discrete | theirs.MultiDiscrete | theirs.MultiBinary
    entries = list(items)
    kept = [(k, s) for k, s in entries if isinstance(s, known | theirs.Dict | theirs.Tuple)]
    for key, space in entries if kept else ():
        if not isinstance(space, known | theirs.Dict | theirs.Tuple):
            where = "".join(f"[{part!r}]" for part in (*path, key))
            _warn_once(
                f"observations{where} of {name} are {type(space).__name__}, whose values have no "
                "fixed shape: the network does not see them"
            )
    return kept or entries


@functools.lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    """The spaces of one environment are read several times."""
    warnings.warn(text, stacklevel=2)


def action_space(space: Any, name: str) -> tuple[spaces.Space, Callable[[np.ndarray], np.ndarray]]:
    """(our space, actions [N, *its shape] -> actions as Gymnasium takes them), in numpy.

    Raises:
        InvalidEnvironment: a space that no distribution of ours covers.
    """
    found = action(space, name)
    return found.space, lambda a: found.encode(a, np)


def action(space: Any, name: str) -> Action:
    """Actions in both languages.

    Args:
        space: Gymnasium's.
        name: of the environment, for messages.

    Raises:
        InvalidEnvironment: a space that no distribution of ours covers.
    """
    from gymnasium import spaces as theirs

    port = Port("action", tuple(space.shape or ()), np.dtype(space.dtype or np.int64))
    if isinstance(space, theirs.Discrete | theirs.MultiDiscrete):
        start, count = _start_and_count(space)
        port = port._replace(low=start, high=start + count - 1)
        sizes = tuple(int(n) for n in np.reshape(count, -1))
        discrete = isinstance(space, theirs.Discrete)
        ours = spaces.Discrete(sizes[0]) if discrete else spaces.MultiDiscrete(sizes)
        return Action(ours, port, _from_zero(port, start))
    if isinstance(space, theirs.MultiBinary):
        size = int(np.prod(space.shape))
        return Action(spaces.MultiBinary(size), port, _from_zero(port, None))
    if isinstance(space, theirs.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = _bounds(space)
        return Action(spaces.Box(low, high, port.shape), port, _clipped(port, space))
    raise InvalidEnvironment(
        f"the actions of {name} are {space}; there are distributions for Discrete, MultiDiscrete, "
        "MultiBinary and Box of floats: wrap the environment in one that takes these"
    )


def codec(
    space: Any,
    actions: Any,
    name: str,
    *,
    channels: str = "auto",
    mask: tuple[str, MaskLayout] | None = None,
) -> Codec:
    """Both languages of an environment, as an agent speaks them.

    Args:
        space, actions: Gymnasium's, of one environment.
        name: of the environment, for messages.
        channels: as for `observation_leaves`.
        mask: (where it comes from, its layout), for a mask that is not a plain entry of the
            observation; where it comes from is "" for an entry in parts.
    """
    from gymnasium import spaces as theirs

    source, layout = mask or ("", None)
    alone = bool(source) and not isinstance(space, theirs.Dict)
    tree = observation_leaves(space, name, (OBSERVATION,) if alone else (), channels=channels)
    acts = action(actions, name)
    if layout is not None:
        parts = {OBSERVATION: tree} if alone else tree
        tree = {**parts, ACTION_MASK: _laid_out(layout)}
        if isinstance(actions, theirs.MultiBinary):
            acts = acts._replace(space=spaces.MultiDiscrete(layout.sizes))
    is_leaf = lambda x: isinstance(x, Leaf)
    found: list[Leaf] = jax.tree.leaves(tree, is_leaf=is_leaf)
    leaves = tuple(leaf._replace(ports=_named(leaf, bool(source))) for leaf in found)

    def flatten(obs: Any) -> list[Any]:
        return [follow(obs, path) for leaf in leaves for path in leaf.paths]

    structure = jax.tree.structure(tree, is_leaf=is_leaf)
    return Codec(leaves, structure, flatten, acts, source, alone)


def _named(leaf: Leaf, apart: bool) -> tuple[Port, ...]:
    """Its ports with names of what leads to them, "obs.wind.speed"; a mask that comes apart from
    the observation is "action_mask"."""
    ports = []
    for path, port in zip(leaf.paths, leaf.ports, strict=True):
        mask = apart and path[:1] == (ACTION_MASK,)
        front = () if mask else ("obs",)
        shown = path[1:] if apart and path[:1] == (OBSERVATION,) else path
        ports.append(port._replace(name=".".join(map(str, (*front, *shown)))))
    return tuple(ports)


def _choices(path: tuple[Any, ...], space: Any, ours: Any, where: str) -> Leaf:
    """Integers from a start on -> from 0 on, [B, *ours.shape] int32."""
    start, count = _start_and_count(space)
    if int(np.max(count)) > INT32.max:
        raise InvalidEnvironment(
            f"{where} are {space}: a network sees a choice as one number for each value, and there "
            f"are too many; give a Box of the numbers instead"
        )
    shape, theirs, dtype = ours.shape, tuple(space.shape or ()), space.dtype
    port = Port("obs", theirs, np.dtype(dtype), start, start + count - 1)

    def decode(arrays: Any, xp: Any) -> Any:
        x = arrays[0].reshape(-1, *shape)
        first = np.reshape(start, shape)
        if xp is np:
            return narrowed(narrowed(x, np.int64, where) - first, np.int32, where)
        return x.astype(np.int32) - first.astype(np.int32)

    def encode(x: np.ndarray) -> list[np.ndarray]:
        return [(x.reshape(-1, *theirs).astype(np.int64) + start).astype(dtype)]

    return Leaf((path,), ours, (port,), decode, encode)


def _bits(path: tuple[Any, ...], space: Any, where: str) -> Leaf:
    shape, dtype, size = tuple(space.shape), np.dtype(space.dtype), int(np.prod(space.shape))

    def decode(arrays: Any, xp: Any) -> Any:
        x = arrays[0].reshape(-1, size)
        return narrowed(x, np.int32, where) if xp is np else x.astype(np.int32)

    def encode(x: np.ndarray) -> list[np.ndarray]:
        return [x.reshape(-1, *shape).astype(dtype)]

    return Leaf((path,), spaces.MultiBinary(size), (Port("obs", shape, dtype),), decode, encode)


def _box(path: tuple[Any, ...], space: Any, where: str, channels: str) -> Leaf:
    (low, high), dtype = _bounds(space), _dtype(space)
    shape, given = tuple(space.shape), np.dtype(space.dtype)
    order = image_order(shape) if channels == "auto" else channels
    wide = dtype.kind == "f" and given.kind in "iu" and given.itemsize == 8
    port = Port("obs", shape, given, wide=wide)
    first = len(shape) == 3 and order == "first"
    if first:
        low, high, shape = (
            np.moveaxis(low, 0, -1),
            np.moveaxis(high, 0, -1),
            (*shape[1:], shape[0]),
        )
    box = spaces.Box(low, high, shape, dtype, unordered=len(shape) == 3 and order == "")

    def decode(arrays: Any, xp: Any) -> Any:
        x = narrowed(arrays[0], dtype, where) if xp is np else arrays[0].astype(dtype)
        return xp.moveaxis(x, 1, -1) if first else x

    def encode(x: np.ndarray) -> list[np.ndarray]:
        if given.kind in "iu":
            limits = np.iinfo(given)
            x = np.clip(x.astype(np.float64), max(limits.min, -(2**62)), min(limits.max, 2**62))
        return [np.moveaxis(x.astype(given), -1, 1) if first else x.astype(given)]

    return Leaf((path,), box, (port,), decode, encode)


def image_order(shape: tuple[int, ...]) -> str:
    """Where the channels of an image are: "first", "last", or "" where its shape does not say.

    Two sides of one length are height and width. Otherwise an end with at most four entries, fewer
    than both other axes, is the channels, if the other end has more than four.

    Args:
        shape: of a Box; "last" for one that is not three-dimensional.
    """
    if len(shape) != 3:
        return "last"
    a, b, c = shape
    if (a == b) != (b == c):
        return "last" if a == b else "first"
    if a < min(b, c) and a <= MOST_CHANNELS < c:
        return "first"
    if c < min(a, b) and c <= MOST_CHANNELS < a:
        return "last"
    return ""


def _mask(space: Any, path: tuple[Any, ...]) -> Leaf:
    """Which actions are legal, whatever numbers the environment says it in."""
    shape = tuple(space.shape or ())
    layout = MaskLayout(((),), (shape,), (np.dtype(space.dtype).name,), (), shape, rows=True)
    return _laid_out(layout)._replace(paths=(path,))


def _laid_out(layout: MaskLayout) -> Leaf:
    box = spaces.Box(False, True, layout.shape, np.bool_)
    pairs = zip(layout.shapes, layout.dtypes, strict=True)
    ports = tuple(Port(ACTION_MASK, shape, np.dtype(dtype)) for shape, dtype in pairs)
    paths = tuple((ACTION_MASK, *path) for path in layout.paths)
    return Leaf(paths, box, ports, layout.decode, layout.encode)


def structured_mask(space: Any, actions: Any, name: str) -> MaskLayout | None:
    """The layout of an entry `action_mask` that is not what a policy takes as it is.

    Args:
        space: Gymnasium's, of one environment's observations.
        actions: Gymnasium's.
        name: of the environment, for messages.

    Returns:
        None: there is no such entry, or it needs no more than a comparison with 0.

    Raises:
        InvalidEnvironment: an entry that fits none of the layouts.
    """
    from gymnasium import spaces as theirs

    kind = space.spaces.get(ACTION_MASK) if isinstance(space, theirs.Dict) else None
    choices = theirs.Discrete | theirs.MultiDiscrete | theirs.MultiBinary
    if kind is None or not isinstance(actions, choices):
        return None
    layout = layout_of(arrays_of(kind), actions, f"the {ACTION_MASK} of {name}")
    plain = isinstance(kind.shape, tuple) and kind.shape == layout.shape
    return None if plain and not isinstance(actions, theirs.MultiBinary) else layout


def _start_and_count(space: Any) -> tuple[Any, Any]:
    """(first value, number of values) of a choice, in 64 bits."""
    start, count = getattr(space, "start", 0), getattr(space, "n", None)
    if count is not None:
        return np.int64(start), np.int64(count)
    return np.asarray(start, np.int64), np.asarray(space.nvec, np.int64)


def _from_zero(port: Port, start: Any) -> Callable[[Any, Any], Any]:
    """Our integers from 0 on as the environment's, from `start` on."""

    def encode(a: Any, xp: Any) -> Any:
        a = a.reshape(-1, *port.shape)
        if xp is np:
            return (a.astype(np.int64) + (0 if start is None else start)).astype(port.dtype)
        a = a if start is None else a.astype(np.int32) + np.asarray(start).astype(np.int32)
        return a.astype(port.program_dtype)

    return encode


def _clipped(port: Port, space: Any) -> Callable[[Any, Any], Any]:
    """Numbers within the bounds, in the environment's type."""
    # The bounds that float32 has inside of the environment's own.
    limits = np.finfo(np.float32)
    narrow = np.float32 if port.dtype.itemsize > 4 else port.dtype
    low = np.clip(space.low, limits.min, limits.max).astype(narrow)
    high = np.clip(space.high, limits.min, limits.max).astype(narrow)
    low = np.where(low < space.low, np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high > space.high, np.nextafter(high, np.float32(-np.inf)), high)

    def encode(a: Any, xp: Any) -> Any:
        a = a.reshape(-1, *port.shape)
        if xp is np:
            return np.clip(a.astype(port.dtype), space.low, space.high)
        return xp.clip(a, low, high).astype(port.program_dtype)

    return encode


def _bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds in the type that JAX holds the values in; what is beyond it is unbounded."""
    low, high, dtype = space.low, space.high, _dtype(space)
    if dtype == np.float32:
        largest = np.finfo(np.float32).max
        low = np.where(low <= -largest, -np.inf, low)
        high = np.where(high >= largest, np.inf, high)
    return np.asarray(low, dtype), np.asarray(high, dtype)


def _dtype(space: Any) -> np.dtype:
    """What JAX, without 64 bits, holds the values of a Box in."""
    dtype = np.dtype(space.dtype)
    if dtype.kind == "f":
        return np.dtype(np.float32)
    if dtype in (np.uint8, np.bool_):
        return dtype
    # Python's integers: int64 beside uint64 would be compared as floats.
    fits = int(space.low.min()) >= INT32.min and int(space.high.max()) <= INT32.max
    return np.dtype(np.int32 if fits else np.float32)
