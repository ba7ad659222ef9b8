"""The observations of N copies of an environment as arrays [N, ...].

Each observation is copied immediately. An environment may write every observation into the same
array, or change the dictionary that it returned, at its next step or reset.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppo_jax.envs.host_spaces import Leaf
from ppo_jax.envs.mask_layouts import NOTHING_LEGAL, without_choice
from ppo_jax.envs.spaces import ACTION_MASK
from ppo_jax.envs.worker import short


class Rows:
    """Reading and copying the observations of one kind of environment.

    Args:
        space: Gymnasium's observation space.
        leaves: leaves of the observation space.
        actions: Gymnasium's action space, to which an entry `action_mask` refers.
    """

    def __init__(self, space: Any, leaves: Sequence[Leaf], actions: Any) -> None:
        self.leaves = tuple(leaves)
        theirs = [_below(space, leaf.path) for leaf in leaves]
        self.fast = {np.ndarray, np.int64}  # the most frequent types take the fastest path
        self.whole = len(leaves) == 1 and not leaves[0].path
        self.kinds = [(tuple(s.shape), np.dtype(s.dtype)) for s in theirs]
        self.choices = [_choices(s) for s in theirs]
        self.texts = [str(s) for s in theirs]
        self.sizes = getattr(actions, "nvec", np.zeros(0, int)).reshape(-1)
        count = (self.sizes.size, self.sizes.max()) if self.sizes.size else (_number(actions),)
        masks = [k for k, leaf in enumerate(self.leaves) if leaf.path == (ACTION_MASK,)]
        self.mask = next((k for k in masks if self.kinds[k][0] == count), None)

    def empty(self, count: int) -> list[np.ndarray]:
        """An array [count, ...] for each leaf, in the environment's own shape and type."""
        return [np.empty((count, *shape), dtype) for shape, dtype in self.kinds]

    def read(self, obs: Any, info: Any) -> tuple[Any, ...]:
        """The leaves of an observation.

        Args:
            obs: observation of one copy.
            info: info of one copy; from a worker process, only the entries named in INFOS.

        Raises:
            ValueError: if an entry is missing.
        """
        if self.whole:
            return (obs,)
        return tuple([leaf.of(obs) for leaf in self.leaves])

    def write(
        self, arrays: list[np.ndarray], i: int, obs: Any, info: Any, *, final: bool = False
    ) -> None:
        """Copy the observation of copy i into row i.

        Args:
            arrays: arrays from `empty`.
            i: index of the copy.
            obs, info: observation and info of the copy, as for `read`.
            final: whether the episode has ended, so that no action needs to be legal.

        Raises:
            ValueError: if the structure, shape or type differs from the observation space, a
                discrete value is outside its space (a network would receive all zeros), or the mask
                allows no action.
        """
        try:
            values = self.read(obs, info)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"returned the observation {type(obs).__name__} without the entry {error}, which "
                "its observation_space has"
            ) from error
        for k, x in enumerate(values):
            shape, dtype = self.kinds[k]
            if type(x) not in self.fast or x.dtype != dtype or x.shape != shape:
                x = _fitted(x, shape, dtype, self.leaves[k])
            choices = self.choices[k]
            if choices is not None and not _among(x, *choices):
                where = "".join(f"[{key!r}]" for key in self.leaves[k].path)
                value = short(np.asarray(x).tolist())
                raise ValueError(
                    f"returned the observation{where} {value}, which is not in {self.texts[k]}"
                )
            if k == self.mask and not final and without_choice(x, self.sizes):
                raise ValueError(f"returned {NOTHING_LEGAL}")
            arrays[k][i] = x

    def without_choice(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """[N] bool, whether the masks of leaves [N, ...] in our layout allow no action."""
        if self.mask is None:
            return np.zeros(len(ours[0]), bool)
        return without_choice(ours[self.mask], self.sizes)

    def ours(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The leaves [N, ...] in our layout."""
        pairs = zip(self.leaves, arrays, strict=True)
        return tuple(np.ascontiguousarray(leaf.read(x)) for leaf, x in pairs)

    def finals(
        self, obs: tuple[np.ndarray, ...], arrays: list[np.ndarray], done: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """The true successors: rows of `arrays` where an episode ended, otherwise rows of `obs`.

        Args:
            obs: leaves [N, ...] in our layout.
            arrays: arrays from `empty`, filled where `done`.
            done: [N] bool, whether the episode ended.
        """
        final = tuple(x.copy() for x in obs)
        for leaf, x, theirs in zip(self.leaves, final, arrays, strict=True):
            x[done] = leaf.read(theirs[done])
        return final

    def batch(self, obs: Any) -> tuple[np.ndarray, ...]:
        """The leaves of the observation [N, ...] of a Gymnasium vector environment, copied."""
        return tuple(np.array(leaf.read(leaf.of(obs)), order="C") for leaf in self.leaves)


def _number(actions: Any) -> int | None:
    """The number of options of a Discrete space, or None."""
    return int(actions.n) if type(actions).__name__ == "Discrete" else None


def _choices(space: Any) -> tuple[Any, Any] | None:
    """(first value, value after the last) of a discrete space, else None. Values outside the bounds
    of a Box are accepted, because a network can use them."""
    start = getattr(space, "start", 0)
    if hasattr(space, "nvec"):
        return start, start + space.nvec
    return (start, start + space.n) if type(space).__name__ == "Discrete" else None


def _among(x: Any, first: Any, end: Any) -> bool:
    return bool(first <= x < end) if np.ndim(end) == 0 else bool(np.all((x >= first) & (x < end)))


def _below(space: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        space = space[key]
    return space


def _fitted(x: Any, shape: tuple[int, ...], dtype: np.dtype, leaf: Leaf) -> np.ndarray:
    """A value converted to the type of its space, if no information is lost.

    Raises:
        ValueError: if the value has another shape, or cannot be converted to the type.
    """
    where = "".join(f"[{key!r}]" for key in leaf.path)
    given = np.asarray(x)
    if given.dtype.kind not in "biuf":
        raise ValueError(
            f"returned an observation{where} of type {type(x).__name__}"
            f"{'' if given.dtype == object else f' ({given.dtype})'}, not numbers of type {dtype}"
        )
    if given.shape != shape:
        raise ValueError(
            f"returned an observation{where} of shape {given.shape}; its observation_space has "
            f"{shape}"
        )
    # Rounding of float64 is accepted; an integer must keep its value.
    if np.can_cast(given.dtype, dtype, "same_kind" if dtype.kind == "f" else "safe"):
        return given
    with np.errstate(invalid="ignore"):
        cast = given.astype(dtype)
    if not np.array_equal(cast, given):
        raise ValueError(
            f"returned an observation{where} of type {given.dtype} with values that {dtype}, the "
            "type of its observation_space, cannot represent"
        )
    return cast
