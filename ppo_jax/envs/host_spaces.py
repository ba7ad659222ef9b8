"""Conversion of Gymnasium's spaces, observations and actions.

The NumPy functions do not use JAX, because they run inside a host callback, where JAX can deadlock.
The same descriptions are used by exported programs, which compute with jax.numpy.
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
from ppo_jax.envs.spaces import ACTION_MASK, CRITIC_OBSERVATION
from ppo_jax.types import PyTree

# A first axis with at most this size is the channels of an image [C, H, W].
MOST_CHANNELS = 4
CHANNELS = ("auto", "first", "last")


def observation_leaves(
    space: Any, name: str, path: tuple[Any, ...] = (), *, channels: str = "auto"
) -> PyTree:
    """The leaves of an observation space, in the structure of the space.

    float64 is converted to float32. Integers except bytes are converted to int32, or to float32 if
    their bounds exceed it. Images [C, H, W] are converted to [H, W, C]. The values of a Discrete
    space are shifted to start at 0. An entry `action_mask` at the top level is converted to bool.

    Args:
        space: Gymnasium's observation space of one environment.
        name: name of the environment, for messages.
        path: keys and indices that lead to this space.
        channels: order of the channels of images, a name in CHANNELS; auto derives it from the
            shape.

    Returns:
        A Leaf, or for Dict and Tuple a dict or tuple of the results for their entries.

    Raises:
        InvalidEnvironment: if the values of the space have no fixed shape (Text, Graph, Sequence,
            OneOf), unless it is one of several entries, or a discrete space has more than 2³¹
            values.
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
        f"{where} are {space}, whose values have no fixed shape; supported are Box, Discrete, "
        "MultiDiscrete, MultiBinary, and Dict and Tuple of them: wrap the environment to return "
        "one of these"
    )


def _with_shape(items: Any, name: str, path: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """The entries of a Dict or Tuple that a network can use. Another entry, such as the text
    `mission` of MiniGrid, is left out with a warning."""
    from gymnasium import spaces as theirs

    known = theirs.Box | theirs.Discrete | theirs.MultiDiscrete | theirs.MultiBinary
    entries = list(items)
    kept = [(k, s) for k, s in entries if isinstance(s, known | theirs.Dict | theirs.Tuple)]
    for key, space in entries if kept else ():
        if not isinstance(space, known | theirs.Dict | theirs.Tuple):
            where = "".join(f"[{part!r}]" for part in (*path, key))
            _warn_once(
                f"observations{where} of {name} are {type(space).__name__}, whose values have no "
                "fixed shape: the network does not receive them"
            )
    return kept or entries


@functools.lru_cache(maxsize=256)
def _warn_once(text: str) -> None:
    """Warn once for each text, because the spaces of an environment are read several times."""
    warnings.warn(text, stacklevel=2)


def action_space(space: Any, name: str) -> tuple[spaces.Space, Callable[[np.ndarray], np.ndarray]]:
    """(our space, NumPy function that converts actions [N, *its shape] to Gymnasium's form).

    Raises:
        InvalidEnvironment: if no distribution supports the space.
    """
    found = action(space, name)
    return found.space, lambda a: found.encode(a, np)


def action(space: Any, name: str) -> Action:
    """The description of actions in both forms.

    Args:
        space: Gymnasium's action space.
        name: name of the environment, for messages.

    Raises:
        InvalidEnvironment: if no distribution supports the space.
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
        f"the actions of {name} are {space}; supported are Discrete, MultiDiscrete, MultiBinary "
        "and Box of floats: wrap the environment to take one of these"
    )


def codec(
    space: Any,
    actions: Any,
    name: str,
    *,
    channels: str = "auto",
    mask: tuple[str, MaskLayout] | None = None,
    beside: bool = False,
) -> Codec:
    """The conversion of observations and actions between Gymnasium's form and the policy's form.

    An entry `critic_observation` of the observation is left out, because an agent does not need it.

    Args:
        space, actions: Gymnasium's observation space and action space of one environment.
        name: name of the environment, for messages.
        channels: order of the channels of images, as for `observation_leaves`.
        mask: (source, layout) of an action mask that is not a plain entry of the observation. The
            source is "" for an entry that consists of several parts.
        beside: whether the critic's observation is separate from the observation, in the info.
    """
    from gymnasium import spaces as theirs

    source, layout = mask or ("", None)
    alone = (bool(source) or beside) and not isinstance(space, theirs.Dict)
    tree = observation_leaves(space, name, (OBSERVATION,) if alone else (), channels=channels)
    acts = action(actions, name)
    tree = {OBSERVATION: tree} if alone else tree
    if isinstance(space, theirs.Dict):
        tree = {key: part for key, part in tree.items() if key != CRITIC_OBSERVATION}
    if layout is not None:
        tree = {**tree, ACTION_MASK: _laid_out(layout)}
        if isinstance(actions, theirs.MultiBinary):
            acts = acts._replace(space=spaces.MultiDiscrete(layout.sizes))
    is_leaf = lambda x: isinstance(x, Leaf)
    found: list[Leaf] = jax.tree.leaves(tree, is_leaf=is_leaf)
    leaves = tuple(leaf._replace(ports=_named(leaf, bool(source) or alone)) for leaf in found)

    def flatten(obs: Any) -> list[Any]:
        return [follow(obs, path) for leaf in leaves for path in leaf.paths]

    structure = jax.tree.structure(tree, is_leaf=is_leaf)
    return Codec(leaves, structure, flatten, acts, source, alone)


def _named(leaf: Leaf, apart: bool) -> tuple[Port, ...]:
    """The ports of a leaf with dotted names, such as "obs.wind.speed"; a mask that is separate
    from the observation is named "action_mask"."""
    ports = []
    for path, port in zip(leaf.paths, leaf.ports, strict=True):
        mask = apart and path[:1] == (ACTION_MASK,)
        front = () if mask else ("obs",)
        shown = path[1:] if apart and path[:1] == (OBSERVATION,) else path
        ports.append(port._replace(name=".".join(map(str, (*front, *shown)))))
    return tuple(ports)


def _choices(path: tuple[Any, ...], space: Any, ours: Any, where: str) -> Leaf:
    """A leaf of integers, shifted to start at 0, [B, *ours.shape] int32."""
    start, count = _start_and_count(space)
    if int(np.max(count)) > INT32.max:
        raise InvalidEnvironment(
            f"{where} are {space}: a network encodes a discrete value with one input for each "
            "option, and there are too many; use a Box of numbers instead"
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
    """The order of the channels of an image: "first", "last", or "" if its shape is ambiguous.

    Two axes of equal size are height and width. Otherwise, the first or last axis is the channels
    if it has at most four entries and fewer than the other two, and the opposite axis has more than
    four entries.

    Args:
        shape: shape of a Box; the result is "last" if it does not have three axes.
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
    """The leaf of an action mask of any numeric type."""
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
    """The layout of an entry `action_mask` that a policy cannot use without conversion.

    Args:
        space: Gymnasium's observation space of one environment.
        actions: Gymnasium's action space.
        name: name of the environment, for messages.

    Returns:
        MaskLayout, or None if there is no such entry or a comparison with 0 is sufficient.

    Raises:
        InvalidEnvironment: if the entry does not have any of the supported layouts.
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
    """(first value, number of values) of a discrete space, in 64 bits."""
    start, count = getattr(space, "start", 0), getattr(space, "n", None)
    if count is not None:
        return np.int64(start), np.int64(count)
    return np.asarray(start, np.int64), np.asarray(space.nvec, np.int64)


def _from_zero(port: Port, start: Any) -> Callable[[Any, Any], Any]:
    """A function that shifts integers from 0 to the values of the environment, from `start`."""

    def encode(a: Any, xp: Any) -> Any:
        a = a.reshape(-1, *port.shape)
        if xp is np:
            return (a.astype(np.int64) + (0 if start is None else start)).astype(port.dtype)
        a = a if start is None else a.astype(np.int32) + np.asarray(start).astype(np.int32)
        return a.astype(port.program_dtype)

    return encode


def _clipped(port: Port, space: Any) -> Callable[[Any, Any], Any]:
    """A function that clips numbers to the bounds and converts them to the environment's type."""
    # The bounds in float32, rounded towards the inside.
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
    """Bounds in the type that JAX uses for the values; a bound outside its range is infinite."""
    low, high, dtype = space.low, space.high, _dtype(space)
    if dtype == np.float32:
        largest = np.finfo(np.float32).max
        low = np.where(low <= -largest, -np.inf, low)
        high = np.where(high >= largest, np.inf, high)
    return np.asarray(low, dtype), np.asarray(high, dtype)


def _dtype(space: Any) -> np.dtype:
    """The type that JAX, with 64-bit types disabled, uses for the values of a Box."""
    dtype = np.dtype(space.dtype)
    if dtype.kind == "f":
        return np.dtype(np.float32)
    if dtype in (np.uint8, np.bool_):
        return dtype
    # Python integers are compared exactly; int64 and uint64 would be compared as floats.
    fits = int(space.low.min()) >= INT32.min and int(space.high.max()) <= INT32.max
    return np.dtype(np.int32 if fits else np.float32)
