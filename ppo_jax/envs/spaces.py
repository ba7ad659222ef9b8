"""Spaces: static descriptions of observations and actions, without arrays inside jit.

An observation may be any pytree of arrays. Its space is then a pytree of the same structure, whose
leaves are the spaces below. Two entries at the top level have a meaning of their own: `action_mask`
holds the legal actions, and `critic_observation` is an input of the critic alone.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ppo_jax.types import PyTree

# The entry of an observation that holds the legal actions: bool, True for a legal action.
ACTION_MASK = "action_mask"
# The entry of an observation that the critic receives besides the other entries, and the actor does
# not: the privileged information of a simulator. It exists during training only.
CRITIC_OBSERVATION = "critic_observation"


@dataclasses.dataclass(frozen=True)
class Discrete:
    """An integer in {0, ..., n − 1}."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = np.int32


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Several integers; component i is in {0, ..., sizes[i] − 1}.

    Attributes:
        sizes: numbers of options (A_1, ..., A_D).
        dtype: type of the integers.
        joint: whether a policy for such actions has one distribution over all ΠA_i combinations
            rather than D independent ones, so that legality may depend on all components at once.
            The environment receives the same [D] integers in both cases.
    """

    sizes: tuple[int, ...]
    dtype: Any = np.int32
    joint: bool = False

    def __post_init__(self) -> None:
        sizes = tuple(int(n) for n in self.sizes)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"the sizes of a MultiDiscrete are {sizes}; each must be at least 1")
        object.__setattr__(self, "sizes", sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)


@dataclasses.dataclass(frozen=True)
class MultiBinary:
    """A vector of n bits."""

    n: int
    dtype: Any = np.int32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """An array with bounds for each element, which may be infinite; a scalar bound holds for all.

    Attributes:
        low, high: lower and upper bounds.
        shape: shape of the array.
        dtype: type of the elements.
        unordered: whether the order of the three axes, [H, W, C] or [C, H, W], is unknown.
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
    """The largest space of arrays with a given shape and type.

    Args:
        leaf: array, or its shape and type.
    """
    dtype = np.dtype(leaf.dtype)
    if dtype.kind == "f":
        return Box(-np.inf, np.inf, leaf.shape, dtype)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return Box(low, high, leaf.shape, dtype)


Space = Discrete | MultiDiscrete | MultiBinary | Box
ACTION_SPACES = (Discrete, MultiDiscrete, MultiBinary, Box)


def leaves(tree: PyTree, *, of_critic: bool = False) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf of an observation, or of its space, that a network receives.

    These are all leaves except the action mask and, for the actor, the critic's observation.

    Args:
        tree: observation or its space; both have the same paths in the same order.
        of_critic: whether the network is the critic rather than the actor.

    Returns:
        List of (path, leaf). A path is written as in code after the name of the observation:
        "['agent'].speed", or "" for a single leaf.
    """
    found = jax.tree_util.tree_leaves_with_path(tree)
    others = (ACTION_MASK,) if of_critic else (ACTION_MASK, CRITIC_OBSERVATION)
    return [(jax.tree_util.keystr(p), x) for p, x in found if _entry(p[:1]) not in others]


def action_mask(tree: PyTree) -> Any:
    """The entry `action_mask` at the top level of an observation, or of its space; or None."""
    return _value(tree, ACTION_MASK)


def critic_observation(tree: PyTree) -> Any:
    """The entry `critic_observation` at the top level of an observation, or of its space; or None
    if there is none, or it is empty."""
    found = _value(tree, CRITIC_OBSERVATION)
    return found if jax.tree.leaves(found) else None


def without_critic_observation(tree: PyTree) -> PyTree:
    """An observation, or its space, as a deployed agent receives it: the entry
    `critic_observation` is left out of a dictionary, and is () in a dataclass or NamedTuple."""
    if _value(tree, CRITIC_OBSERVATION) is None:
        return tree
    if isinstance(tree, Mapping):
        return {name: x for name, x in tree.items() if name != CRITIC_OBSERVATION}
    replaced = {CRITIC_OBSERVATION: ()}
    return (
        tree._replace(**replaced)
        if hasattr(tree, "_replace")
        else (dataclasses.replace(tree, **replaced))
    )


def _value(tree: PyTree, name: str) -> Any:
    """An entry at the top level, or None."""
    return tree.get(name) if isinstance(tree, Mapping) else getattr(tree, name, None)


def mask_shape(actions: Space) -> tuple[int, ...] | None:
    """The shape of an action mask for these actions; None if masks are not supported.

    Discrete(n): [n]. MultiDiscrete(sizes): [D, max A_i], one row for each component, in which
    elements beyond its A_i are ignored. MultiDiscrete(sizes, joint=True): [A_1, ..., A_D].
    """
    if isinstance(actions, Discrete):
        return (actions.n,)
    if isinstance(actions, MultiDiscrete):
        return actions.sizes if actions.joint else (len(actions.sizes), max(actions.sizes))
    return None


def drawn(actions: Space) -> Space:
    """The space of actions as a policy draws and stores them, with joint choices as one index."""
    if isinstance(actions, MultiDiscrete) and actions.joint:
        return Discrete(math.prod(actions.sizes))
    return actions


def action_frame(actions: Box) -> tuple[np.ndarray, np.ndarray] | None:
    """The affine map of a Gaussian around 0 to the action space: (shift, scale), or None.

    The action for a number u is shift + scale · u. If an element has two finite bounds and 0 is
    outside the middle half between them, [−1, 1] is mapped to the bounds. If it has one finite
    bound and 0 is beyond it, or less than half a unit inside it, 0 is mapped one unit inside. All
    other elements are unchanged: shift 0 and scale 1.

    Returns:
        Two arrays [*actions.shape], or None if no element is changed.
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
    """Whether a leaf is an image [H, W, C]."""
    return isinstance(space, Box) and len(space.shape) == 3


def image(tree: PyTree) -> tuple[str, Box]:
    """(path, space) of the only image among the observations.

    Raises:
        ValueError: if the number of images that the actor receives is not one, or the critic
            receives another one.
    """
    found = [(path, leaf) for path, leaf in leaves(tree, of_critic=True) if is_image(leaf)]
    if len(found) != 1 or not any(is_image(leaf) for _, leaf in leaves(tree)):
        count = f"{len(found)} of them" if found else "none"
        raise ValueError(
            f"a convolutional network requires one image [H, W, C], but among the observations, "
            f"{describe(tree)}, there are {count}"
        )
    return found[0]


def describe(tree: PyTree) -> str:
    """A short description of a space: "['map'] Box(7, 7, 2) uint8, ['facing'] Discrete(4)".

    Bounds are left out. An object that is not a space is shown with its module.
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
