"""What observations and actions look like: static descriptions, no arrays inside jit.

An observation may be any pytree of arrays; its space is then a pytree of the same structure whose
leaves are the spaces below. An entry `action_mask` at its top level says what is legal.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ppo_jax.types import PyTree

# The entry of an observation that holds what may be done: bool, True is legal.
ACTION_MASK = "action_mask"


@dataclasses.dataclass(frozen=True)
class Discrete:
    """An integer in {0, ..., n − 1}."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = np.int32


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Several integers, component i in {0, ..., sizes[i] − 1}.

    Attributes:
        sizes: (A_1, ..., A_D).
        dtype: of the integers.
        joint: as actions, one distribution over all ΠA_i combinations in place of D independent
            ones; what is legal may then depend on all components at once. The environment is
            given the same [D] integers either way.
    """

    sizes: tuple[int, ...]
    dtype: Any = np.int32
    joint: bool = False

    def __post_init__(self) -> None:
        sizes = tuple(int(n) for n in self.sizes)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes of a MultiDiscrete are {sizes}; each must be at least 1")
        object.__setattr__(self, "sizes", sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)


@dataclasses.dataclass(frozen=True)
class MultiBinary:
    """n bits."""

    n: int
    dtype: Any = np.int32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """An array with bounds per element, possibly infinite; a scalar bound holds for all.

    Attributes:
        low, high: bounds.
        shape: of the array.
        dtype: of its numbers.
        unordered: three axes of which nobody knows whether they are [H, W, C] or [C, H, W].
    """

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = np.float32
    unordered: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = np.broadcast_to(np.asarray(getattr(self, name), self.dtype), self.shape)
            object.__setattr__(self, name, bound)

    @property
    def bounded(self) -> bool:
        """Whether every element has finite bounds with low < high."""
        finite = np.isfinite(self.low).all() and np.isfinite(self.high).all()
        return bool(finite and (self.low < self.high).all())


def box_of(leaf: Any) -> Box:
    """The space of arrays of which only shape and type are known: whatever the type can hold.

    Args:
        leaf: an array or its description.
    """
    dtype = np.dtype(leaf.dtype)
    if dtype.kind == "f":
        return Box(-np.inf, np.inf, leaf.shape, dtype)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return Box(low, high, leaf.shape, dtype)


Space = Discrete | MultiDiscrete | MultiBinary | Box
ACTION_SPACES = (Discrete, MultiDiscrete, MultiBinary, Box)


def leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """(path, leaf) of everything in an observation, or in its space, but the action mask.

    Args:
        tree: an observation or its space; both give the same paths in the same order.

    Returns:
        The path is what follows the observation in code: "['agent'].speed", "" for a lone leaf.
    """
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(p), x) for p, x in found if _entry(p[:1]) != ACTION_MASK]


def action_mask(tree: PyTree) -> Any:
    """The entry `action_mask` at the top level of an observation, or of its space; or None."""
    if isinstance(tree, Mapping):
        return tree.get(ACTION_MASK)
    return getattr(tree, ACTION_MASK, None)


def mask_shape(actions: Space) -> tuple[int, ...] | None:
    """The shape of a mask for these actions; None where there is no such thing.

    Discrete(n): [n]. MultiDiscrete(sizes): [D, max A_i], a row per component, what is beyond its
    A_i ignored. MultiDiscrete(sizes, joint=True): [A_1, ..., A_D].
    """
    if isinstance(actions, Discrete):
        return (actions.n,)
    if isinstance(actions, MultiDiscrete):
        return actions.sizes if actions.joint else (len(actions.sizes), max(actions.sizes))
    return None


def drawn(actions: Space) -> Space:
    """The space of actions as a policy draws and stores them: joint choices as one index."""
    if isinstance(actions, MultiDiscrete) and actions.joint:
        return Discrete(math.prod(actions.sizes))
    return actions


def action_frame(actions: Box) -> tuple[np.ndarray, np.ndarray] | None:
    """Where a Gaussian around 0 should lie, if not there: (shift, scale) of its actions.

    shift + scale u is the action of a number u. Between two finite bounds of whose middle half 0 is
    no element, [−1, 1] is mapped to the bounds; beside a single one that 0 is beyond, or less than
    half a unit away from, 0 is mapped one unit inside. Elsewhere nothing is changed: 0 and 1.

    Returns:
        [*actions.shape] each; None where no element is changed.
    """
    low, high = np.asarray(actions.low, np.float64), np.asarray(actions.high, np.float64)
    below, above = np.isfinite(low), np.isfinite(high)
    finite_low, finite_high = np.where(below, low, 0.0), np.where(above, high, 0.0)
    centre, half = (finite_low + finite_high) / 2, (finite_high - finite_low) / 2
    both = below & above & (half > 0) & (np.abs(centre) > half / 2)
    up, down = below & ~above & (low > -0.5), above & ~below & (high < 0.5)
    if not (both | up | down).any():
        return None
    shift = np.select([both, up, down], [centre, finite_low + 1, finite_high - 1], 0.0)
    return shift, np.where(both, half, 1.0)


def is_image(space: Any) -> bool:
    """Whether a leaf is a picture [H, W, C]."""
    return isinstance(space, Box) and len(space.shape) == 3


def image(tree: PyTree) -> tuple[str, Box]:
    """(path, space) of the only image among the observations.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [(path, leaf) for path, leaf in leaves(tree) if is_image(leaf)]
    if len(found) != 1:
        count = f"{len(found)} of them" if found else "none"
        raise ValueError(
            f"convolutions take one image [H, W, C]; among the observations, {describe(tree)}, "
            f"there are {count}"
        )
    return found[0]


def describe(tree: PyTree) -> str:
    """A space in a few words: "['map'] Box(7, 7, 2) uint8, ['facing'] Discrete(4)".

    Bounds are left out; what is no space is named with its module.
    """
    found = jax.tree_util.tree_leaves_with_path(tree)
    return ", ".join(f"{jax.tree_util.keystr(p)} {_describe(x)}".strip() for p, x in found)


def _describe(leaf: Any) -> str:
    if isinstance(leaf, Box):
        return f"Box{leaf.shape} {np.dtype(leaf.dtype).name}"
    if isinstance(leaf, MultiDiscrete):
        return f"MultiDiscrete{leaf.sizes}{' joint' if leaf.joint else ''}"
    if isinstance(leaf, Discrete | MultiBinary):
        return f"{type(leaf).__name__}({leaf.n})"
    return f"{type(leaf).__module__}.{leaf}"


def _entry(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True)
