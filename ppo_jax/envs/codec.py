"""Conversion of observations and actions between an environment's form and the policy's form.

A policy is trained on arrays in our layout: integers from 0, images [H, W, C], 32 bits. The
environment's form may differ. A Codec contains both directions as pure functions of an array
module: numpy where an agent acts on the host, jax.numpy inside an exported program.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.envs.spaces import ACTION_MASK
from ppo_jax.types import PyTree

# The entry of our observation for the environment's whole observation, where the latter is not a
# dictionary and a separate mask is added to it.
OBSERVATION = "observation"
INT32 = np.iinfo(np.int32)


class Port(NamedTuple):
    """One array in the environment's form, without the batch dimension.

    Attributes:
        name: name, such as "obs", "obs.speed", "action_mask" or "action".
        shape: shape of one observation or action.
        dtype: type that the environment uses.
        low, high: smallest and largest valid value, or None if all values are valid.
        wide: whether the values are integers beyond 32 bits, which the network receives as float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    low: Any = None
    high: Any = None
    wide: bool = False

    @property
    def program_dtype(self) -> np.dtype:
        """The type inside a JAX program with 64-bit types disabled."""
        if self.wide:
            return np.dtype(np.float32)
        # `jax.dtypes.canonicalize_dtype` would depend on settings of the process.
        narrow = {"int64": "int32", "uint64": "uint32", "float64": "float32"}
        return np.dtype(narrow.get(self.dtype.name, self.dtype))

    @property
    def fits(self) -> bool:
        """Whether all valid values can be represented in 32 bits."""
        if self.low is None or self.dtype.itemsize < 8:
            return True
        return bool(np.min(self.low) >= INT32.min and np.max(self.high) <= INT32.max)


class Leaf(NamedTuple):
    """One array of our observation, and the arrays of the environment from which it is made.

    Attributes:
        paths: keys and indices that lead to each array in the environment's observation.
        space: space from `ppo_jax.envs.spaces`.
        ports: descriptions of the environment's arrays; only masks can have several.
        decode: function (arrays [B, ...], array module) -> [B, *space.shape] of space.dtype.
        encode: inverse function, in NumPy only: [B, *space.shape] -> arrays.
    """

    paths: tuple[tuple[Any, ...], ...]
    space: spaces.Space
    ports: tuple[Port, ...]
    decode: Callable[[Sequence[Any], Any], Any]
    encode: Callable[[np.ndarray], Sequence[np.ndarray]]

    @property
    def path(self) -> tuple[Any, ...]:
        """The path of its array, or of the first one."""
        return self.paths[0]

    def of(self, value: Any) -> Any:
        """The environment's array of this leaf, from a whole observation."""
        return follow(value, self.path)

    def read(self, x: Any) -> np.ndarray:
        """Convert [B, ...] in the environment's form to [B, *space.shape] of space.dtype, in NumPy.

        Raises:
            ValueError: if the type cannot represent a number; the message names the leaf.
        """
        return self.decode((np.asarray(x),), np)


class Action(NamedTuple):
    """The description of actions in both forms.

    Attributes:
        space: space from `ppo_jax.envs.spaces`.
        port: description of the environment's array.
        encode: function ([B, *space.shape], array module) -> [B, *port.shape], of the environment's
            type in NumPy and of `port.program_dtype` in jax.numpy.
    """

    space: spaces.Space
    port: Port
    encode: Callable[[Any, Any], Any]


class Codec(NamedTuple):
    """The conversion between an environment's form and the policy's form.

    Attributes:
        leaves: leaves of our observations, in the order of jax.tree.
        structure: structure of our observations.
        flatten: function that returns the arrays of an environment's observation, in the order of
            `ports`.
        action: description of the actions.
        mask_source: source of a mask that is not an entry of the observation, for messages; "" if
            there is none.
        alone: whether the environment's whole observation is one entry of ours, next to the mask.
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
        """The environment's arrays of an observation, not yet converted.

        Args:
            obs: observation in the environment's structure.
            action_mask: mask, if it is not an entry of the observation.

        Raises:
            ValueError: if an entry or the mask is missing; the message names the mask's source.
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
        """Convert the environment's arrays [B, ...] to our observation [B, ...].

        Args:
            arrays: arrays in the order of `ports`.
            xp: array module, numpy or jax.numpy.
        """
        rest, found = list(arrays), []
        for leaf in self.leaves:
            count = len(leaf.ports)
            found.append(leaf.decode(rest[:count], xp))
            rest = rest[count:]
        return jax.tree.unflatten(self.structure, found)

    def unread(self, obs: PyTree) -> list[np.ndarray]:
        """The inverse of `read`: convert our observation [B, ...] to the environment's arrays."""
        leaves = jax.tree.leaves(obs)
        pairs = zip(self.leaves, leaves, strict=True)
        return [array for leaf, x in pairs for array in leaf.encode(np.asarray(x))]

    def _whole(self, obs: PyTree, action_mask: Any) -> PyTree:
        """The observation with the mask as an entry."""
        if self.alone and not (isinstance(obs, Mapping) and OBSERVATION in obs):
            obs = {OBSERVATION: obs}
        entries = obs if isinstance(obs, Mapping) else {}
        if action_mask is not None:
            if not self._masked or not isinstance(obs, Mapping):
                raise ValueError(
                    "action_mask is given, but this agent takes no mask separate from its "
                    "observation"
                )
            return {**obs, ACTION_MASK: action_mask}
        if self.mask_source and ACTION_MASK not in entries:
            raise ValueError(
                f"the mask of legal actions is missing: call agent(obs, action_mask=mask), where "
                f"mask is {self.mask_source}"
            )
        return obs

    @property
    def _masked(self) -> bool:
        names = [port.name.split(".") for port in self.ports]
        return any(ACTION_MASK in name[:2] for name in names)


def plain(obs: PyTree, action_space: spaces.Space, observation_space: PyTree) -> Codec:
    """The codec of an environment in JAX, which converts nothing.

    Args:
        obs: example with leaves [N, ...] of the structure, shapes and types of observations.
        action_space: action space of the environment.
        observation_space: observation space of the environment.
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
    # The environment's own observation may have the entry that only the critic needs.
    flatten = lambda obs: structure.flatten_up_to(spaces.without_critic_observation(obs))
    return Codec(tuple(leaves), structure, flatten, action)


def choices(space: spaces.Space) -> tuple[Any, Any]:
    """(smallest, largest) value of a discrete space; (None, None) for other spaces."""
    if isinstance(space, spaces.Discrete):
        return 0, space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return np.zeros(space.shape, np.int64), np.asarray(space.sizes) - 1
    return None, None


def follow(value: Any, path: Sequence[Any]) -> Any:
    """The value that keys and indices lead to."""
    for key in path:
        value = value[key]
    return value


def narrowed(x: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """The same numbers in another type.

    Args:
        x: array to convert.
        dtype: type of the result.
        name: name of the leaf, for the message.

    Raises:
        ValueError: if the type cannot represent a number.
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
    """A number that Python compares exactly; int64 and uint64 would be compared as floats."""
    return int(x) if np.asarray(x).dtype.kind in "iub" else float(x)


def _too_large(name: str, value: Any, dtype: np.dtype) -> str:
    return (
        f"{name} has the value {value}, which {dtype} cannot represent; set bounds in the "
        "observation space that include its values (docs/spaces.md)"
    )
