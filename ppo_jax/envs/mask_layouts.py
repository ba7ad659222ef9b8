"""Layouts of action masks in environments, and their conversion to the layout of policies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppo_jax.envs.protocol import InvalidEnvironment

Path = tuple[Any, ...]
# Description of a mask that allows no action while the episode continues.
NOTHING_LEGAL = "a mask in which no action is legal while the episode continues"


class MaskLayout(NamedTuple):
    """The arrays of a mask, and the positions of their entries.

    Attributes:
        paths: keys and indices that lead to each array within the mask.
        shapes: shapes of the arrays.
        dtypes: names of the arrays' types.
        sizes: numbers of options (A_1, ..., A_D); () for Discrete.
        shape: shape of the mask for a policy: [n], or [D, max A_i].
        rows: whether the array already has this shape, except for leading dimensions.
    """

    paths: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    rows: bool

    def of(self, mask: Any) -> list[Any]:
        """The arrays of a mask."""
        found = []
        for path in self.paths:
            value = mask
            for key in path:
                value = value[key]
            found.append(value)
        return found

    def decode(self, arrays: Sequence[Any], xp: Any) -> Any:
        """Convert the arrays [B, ...] to a mask [B, *shape] of bool; True is legal."""
        count = arrays[0].shape[0]
        if self.rows:
            return arrays[0].reshape(count, *self.shape) != 0
        parts = [x.reshape(count, -1) != 0 for x in arrays]
        flat = parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=-1)
        padded, first = [], 0
        for size in self.sizes:
            padded.append(flat[:, first : first + size])
            if size < self.shape[1]:
                padded.append(xp.zeros((count, self.shape[1] - size), bool))
            first += size
        return xp.concatenate(padded, axis=-1).reshape(count, *self.shape)

    def encode(self, mask: np.ndarray) -> list[np.ndarray]:
        """The inverse of `decode`, in NumPy."""
        count = mask.shape[0]
        if self.rows:
            return [mask.reshape(count, *self.shapes[0]).astype(self.dtypes[0])]
        flat = np.concatenate([mask[:, i, :n] for i, n in enumerate(self.sizes)], axis=-1)
        found, first = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = int(np.prod(shape))
            found.append(flat[:, first : first + size].reshape(count, *shape).astype(dtype))
            first += size
        return found

    def one(self, mask: Any, name: str) -> np.ndarray:
        """The mask of one environment, [*shape] bool.

        Raises:
            ValueError: if the mask has another layout than this one.
        """
        try:
            arrays = [np.asarray(x)[None] for x in self.of(mask)]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name}: the mask of legal actions changed its structure: {error}"
            ) from error
        for x, shape in zip(arrays, self.shapes, strict=True):
            if x.shape[1:] != shape:
                raise ValueError(
                    f"{name}: the mask of legal actions has shape {x.shape[1:]}; earlier it had "
                    f"shape {shape}"
                )
        return self.decode(arrays, np)[0]


def without_choice(mask: Any, sizes: Any = ()) -> np.ndarray:
    """Whether no option is legal in at least one component of an action.

    Args:
        mask: [..., n] mask, or [..., D, max A_i] mask of D components.
        sizes: numbers of options (A_1, ..., A_D), beyond which elements are ignored; () for
            [..., n].

    Returns:
        [...] bool, whether a component has no legal option.
    """
    legal = np.asarray(mask) != 0
    if not len(sizes):
        return ~legal.any(-1)
    inside = np.arange(legal.shape[-1]) < np.asarray(sizes)[:, None]
    return ~(legal & inside).any(-1).all(-1)


def layout_of(arrays: Any, actions: Any, name: str) -> MaskLayout:
    """The layout of a mask.

    Args:
        arrays: (shape, type) of a mask, or a dict or list of them, one for each component in
            order, as `arrays_of` returns.
        actions: Gymnasium's Discrete, MultiDiscrete or MultiBinary.
        name: name of the mask and its environment, for messages.

    Raises:
        InvalidEnvironment: if the mask has none of the supported layouts; the message lists them.
    """
    found = _leaves(arrays)
    paths = tuple(path for path, _ in found)
    shapes, dtypes = tuple(s for _, (s, _) in found), tuple(d for _, (_, d) in found)
    sizes, axes = _sizes_and_axes(actions)
    if not sizes:
        n = int(actions.n)
        if shapes in (((n,),), ((1, n),)):
            return MaskLayout(paths, shapes, dtypes, sizes, (n,), rows=True)
        raise _no_layout(name, shapes, actions, f"({n},)")
    shape = (len(sizes), max(sizes))
    rows = shapes in ((shape,), ((*axes, max(sizes)),))
    parts = len(shapes) > 1 and tuple(math.prod(s) for s in shapes) == sizes
    if rows or parts or shapes == ((sum(sizes),),):
        return MaskLayout(paths, shapes, dtypes, sizes, shape, rows)
    wanted = (
        f"({sum(sizes)},), all components concatenated; {shape}, a row for each component; or a "
        f"tuple or dictionary of {len(sizes)} masks with {', '.join(map(str, sizes))} entries"
    )
    raise _no_layout(name, shapes, actions, wanted)


def _sizes_and_axes(actions: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """((A_1, ..., A_D), shape of the choices); ((), ()) for Discrete."""
    if hasattr(actions, "nvec"):
        return tuple(int(n) for n in actions.nvec.reshape(-1)), tuple(actions.nvec.shape)
    if hasattr(actions, "start"):
        return (), ()
    return (2,) * math.prod(actions.shape), tuple(actions.shape)


def _no_layout(name: str, shapes: Any, actions: Any, wanted: str) -> InvalidEnvironment:
    given = ", ".join(map(str, shapes))
    return InvalidEnvironment(
        f"{name} has shape {given}; for the actions {actions} it must be {wanted}"
    )


def arrays_of(mask: Any) -> Any:
    """(shape, type) of a mask, or of Gymnasium's space of a mask; a dict or list of them for a mask
    in parts."""
    mask = getattr(mask, "spaces", mask)
    if isinstance(mask, Mapping):
        return {key: arrays_of(value) for key, value in mask.items()}
    if isinstance(mask, list | tuple):
        found = [arrays_of(x) for x in mask]
        alike = all(isinstance(x, tuple) and x[0] == found[0][0] for x in found)
        return ((len(mask), *found[0][0]), found[0][1]) if alike else found
    if hasattr(mask, "shape") and hasattr(mask, "dtype"):
        return tuple(mask.shape), np.dtype(mask.dtype).name
    return tuple(np.shape(mask)), np.asarray(mask).dtype.name


def _leaves(arrays: Any, path: Path = ()) -> list[tuple[Path, tuple[Any, str]]]:
    """(path, (shape, type)) of every array."""
    if isinstance(arrays, Mapping):
        return [leaf for key, part in arrays.items() for leaf in _leaves(part, (*path, key))]
    if isinstance(arrays, list):
        return [leaf for i, part in enumerate(arrays) for leaf in _leaves(part, (*path, i))]
    return [(path, arrays)]
