"""An environment's own language and ours: observations in, actions out, described once.

A policy is trained on arrays in our layout: integers from 0, images [H, W, C], 32 bits. What an
environment returns and takes may differ. A Codec holds both directions as pure functions of a
module of arrays: numpy where an agent acts on the host, jax.numpy inside an exported program.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.envs.spaces import ACTION_MASK
from ppo_jax.types import PyTree

# The entry of our observation that holds the environment's whole one, where it is no dictionary
# and a mask that comes separately joins it.
OBSERVATION = "observation"
INT32 = np.iinfo(np.int32)


class Port(NamedTuple):
    """One array as the environment has it, without the batch dimension.

    Attributes:
        name: "obs", "obs.speed", "action_mask", "action".
        shape: of one observation or action.
        dtype: the environment's own.
        low, high: the least and the greatest value, where every other one is an error.
        wide: integers beyond 32 bits, which the network gets as float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    low: Any = None
    high: Any = None
    wide: bool = False

    @property
    def program_dtype(self) -> np.dtype:
        """The type inside a JAX program without 64 bits: that of the same values in 32 bits."""
        if self.wide:
            return np.dtype(np.float32)
        # By hand: `jax.dtypes.canonicalize_dtype` depends on the process.
        narrow = {"int64": "int32", "uint64": "uint32", "float64": "float32"}
        return np.dtype(narrow.get(self.dtype.name, self.dtype))

    @property
    def fits(self) -> bool:
        """Whether the values of a choice have such a type: a start beyond 2³¹ has none."""
        if self.low is None or self.dtype.itemsize < 8:
            return True
        return bool(np.min(self.low) >= INT32.min and np.max(self.high) <= INT32.max)


class Leaf(NamedTuple):
    """One array of our observation, and the arrays of the environment's it is made of.

    Attributes:
        paths: for each of its arrays, keys and indices that lead to it in the environment's
            observation.
        space: one of ours.
        ports: the environment's arrays; one, but for masks that come in parts.
        decode: (arrays [B, ...], module of arrays) -> [B, *space.shape] of space.dtype.
        encode: the inverse, for one module alone: [B, *space.shape] numpy -> arrays.
    """

    paths: tuple[tuple[Any, ...], ...]
    space: spaces.Space
    ports: tuple[Port, ...]
    decode: Callable[[Sequence[Any], Any], Any]
    encode: Callable[[np.ndarray], Sequence[np.ndarray]]

    @property
    def path(self) -> tuple[Any, ...]:
        """What leads to its array; of several, to the first."""
        return self.paths[0]

    def of(self, value: Any) -> Any:
        """The environment's array of this leaf, of a whole observation."""
        return follow(value, self.path)

    def read(self, x: Any) -> np.ndarray:
        """[B, ...] as the environment has it -> [B, *space.shape] of space.dtype, in numpy.

        Raises:
            ValueError: a number that the type does not hold, with the name of the leaf.
        """
        return self.decode((np.asarray(x),), np)


class Action(NamedTuple):
    """Actions in both languages.

    Attributes:
        space: one of ours.
        port: the environment's array.
        encode: ([B, *space.shape], module of arrays) -> [B, *port.shape] of the environment's type,
            in jax.numpy of `port.program_dtype`.
    """

    space: spaces.Space
    port: Port
    encode: Callable[[Any, Any], Any]


class Codec(NamedTuple):
    """The two languages of an environment.

    Attributes:
        leaves: of our observations, in jax.tree's order.
        structure: of our observations.
        flatten: environment's observation -> its arrays, in the order of `ports`.
        action: of actions.
        mask_source: where a mask that is no entry of the observation comes from, for messages;
            "" if there is none.
        alone: whether the environment's observation is one entry of ours, beside the mask.
    """

    leaves: tuple[Leaf, ...]
    structure: Any
    flatten: Callable[[PyTree], list[Any]]
    action: Action
    mask_source: str = ""
    alone: bool = False

    @property
    def ports(self) -> list[Port]:
        """The environment's arrays, in the order of their names in our observation."""
        return [port for leaf in self.leaves for port in leaf.ports]

    def arrays(self, obs: PyTree, action_mask: Any = None) -> list[Any]:
        """The environment's arrays of an observation, as they were given.

        Args:
            obs: in the environment's structure.
            action_mask: the mask, where it is no entry of the observation.

        Raises:
            ValueError: an entry is missing, or the mask is, with where it comes from.
        """
        whole = self._whole(obs, action_mask)
        try:
            return self.flatten(whole)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            names = ", ".join(port.name for port in self.ports)
            raise ValueError(
                f"the observation must have the entries {names}: {error or type(error).__name__}"
            ) from error

    def read(self, arrays: Sequence[Any], xp: Any = np) -> PyTree:
        """The environment's arrays [B, ...] as our observation [B, ...].

        Args:
            arrays: in the order of `ports`.
            xp: numpy or jax.numpy.
        """
        rest, found = list(arrays), []
        for leaf in self.leaves:
            count = len(leaf.ports)
            found.append(leaf.decode(rest[:count], xp))
            rest = rest[count:]
        return jax.tree.unflatten(self.structure, found)

    def unread(self, obs: PyTree) -> list[np.ndarray]:
        """The inverse of `read`: our observation [B, ...] as the environment's arrays."""
        leaves = jax.tree.leaves(obs)
        pairs = zip(self.leaves, leaves, strict=True)
        return [array for leaf, x in pairs for array in leaf.encode(np.asarray(x))]

    def _whole(self, obs: PyTree, action_mask: Any) -> PyTree:
        """The observation with the mask as its entry."""
        if self.alone and not (isinstance(obs, Mapping) and OBSERVATION in obs):
            obs = {OBSERVATION: obs}
        entries = obs if isinstance(obs, Mapping) else {}
        if action_mask is not None:
            if not self._masked or not isinstance(obs, Mapping):
                raise ValueError(
                    "action_mask is given, but this agent takes no mask beside its observation"
                )
            return {**obs, ACTION_MASK: action_mask}
        if self.mask_source and ACTION_MASK not in entries:
            raise ValueError(
                f"the mask of legal actions is missing: agent(obs, action_mask=mask), where mask "
                f"is {self.mask_source}"
            )
        return obs

    @property
    def _masked(self) -> bool:
        names = [port.name.split(".") for port in self.ports]
        return any(ACTION_MASK in name[:2] for name in names)


def plain(obs: PyTree, action_space: spaces.Space, observation_space: PyTree) -> Codec:
    """The codec of an environment that speaks our language: nothing is changed.

    Args:
        obs: example [N, ...]: the structure, shapes and types of observations.
        action_space: of the environment.
        observation_space: of the environment.
    """
    found = jax.tree_util.tree_leaves_with_path(obs)
    structure: Any = jax.tree.structure(obs)
    described = jax.tree.leaves(observation_space)
    leaves = []
    for (path, x), space in zip(found, described, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        low, high = choices(space)
        port = Port(f"obs.{name}" if name else "obs", tuple(x.shape[1:]), np.dtype(x.dtype))
        port = port._replace(low=low, high=high)
        leaves.append(Leaf(((),), space, (port,), lambda xs, xp: xs[0], lambda x: (x,)))
    shape = action_space.shape
    port = Port("action", shape, np.dtype(action_space.dtype))
    action = Action(action_space, port, lambda a, xp: a.reshape(a.shape[0], *shape))
    return Codec(tuple(leaves), structure, structure.flatten_up_to, action)


def choices(space: spaces.Space) -> tuple[Any, Any]:
    """(least, greatest) value of a choice; (None, None) of what is none."""
    if isinstance(space, spaces.Discrete):
        return 0, space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return np.zeros(space.shape, np.int64), np.asarray(space.sizes) - 1
    return None, None


def follow(value: Any, path: Sequence[Any]) -> Any:
    """What keys and indices lead to."""
    for key in path:
        value = value[key]
    return value


def narrowed(x: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """The same numbers in another type.

    Args:
        x: array.
        dtype: wanted.
        name: of the leaf, for the message.

    Raises:
        ValueError: a number that the type does not hold.
    """
    x, dtype = np.asarray(x), np.dtype(dtype)
    if np.can_cast(x.dtype, dtype):
        return x.astype(dtype, copy=False)
    if dtype.kind == "f":
        with np.errstate(over="raise"):
            try:
                return x.astype(dtype)
            except FloatingPointError:
                wrong = x[np.isfinite(x) & (np.abs(x) > np.finfo(dtype).max)].flat[0]
                raise ValueError(_too_large(name, wrong, dtype)) from None
    if dtype.kind in "iu" and x.size:
        limits, low, high = np.iinfo(dtype), x.min(), x.max()
        if not (int_or_nan(low) >= limits.min and int_or_nan(high) <= limits.max):
            wrong = high if int_or_nan(low) >= limits.min else low
            raise ValueError(_too_large(name, wrong, dtype))
    return x.astype(dtype)


def int_or_nan(x: Any) -> Any:
    """A number that Python compares exactly: int64 beside uint64 would become floats."""
    return int(x) if np.asarray(x).dtype.kind in "iub" else float(x)


def _too_large(name: str, value: Any, dtype: np.dtype) -> str:
    return (
        f"{name} has the value {value}, which {dtype} does not hold; give the observation space "
        "bounds that include its values (docs/spaces.md)"
    )
