"""Suite `jumanji`: combinatorial problems, most of them with action masks.

Most environments of jumanji report their time limit as termination. They are made here with a limit
one step later than requested, and this package counts the requested limit. Terminations and
truncations are then distinguished exactly.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.types import PyTree

# Environments whose mask covers combinations of choices rather than each choice separately, where
# the shape of the mask alone is ambiguous.
JOINT = ("BinPack", "FlatPack", "Minesweeper", "Sudoku", "Tetris")
# Entries of an observation that are the number of steps.
CLOCKS = ("step_count", "step")


@dataclasses.dataclass(frozen=True, eq=False)
class JumanjiEnv:
    """A jumanji environment with a step counter; its state is (state of jumanji, number of steps).

    Attributes:
        env: jumanji.env.Environment, whose own time limit is later than `time_limit`.
        name: id of the environment.
        observation_space: spaces in the NamedTuple of jumanji.
        action_space: Discrete, MultiDiscrete (joint if the mask covers combinations) or Box.
        time_limit: number of steps after which an episode is truncated; infinity without a limit.
        params: () (no parameters).
    """

    env: Any
    name: str
    observation_space: Any
    action_space: Any
    time_limit: float
    params: tuple[()] = ()

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start a new episode: (obs, state)."""
        state, timestep = self.env.reset(key)
        obs = _scaled(timestep.observation, self.time_limit)
        return obs, (state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step; the rewards of several agents are summed."""
        inner, time = state
        inner, timestep = self.env.step(inner, action.astype(self.action_space.dtype))
        reward = jnp.sum(timestep.reward, dtype=jnp.float32)
        truncated = time + 1 >= self.time_limit
        obs = _scaled(timestep.observation, self.time_limit)
        return obs, (inner, time + 1), reward, timestep.last(), truncated, {}


@functools.cache
def _jumanji() -> ModuleType:
    import jumanji

    return jumanji


def names() -> list[str]:
    """Ids of the suite."""
    return list(_jumanji().registered_environments())


def make(env_id: str, *, time_limit: int | None = None, **kwargs: Any) -> JumanjiEnv:
    """Make the environment that jumanji registers under this id.

    Args:
        env_id: id, e.g. "Snake-v1".
        time_limit: number of steps after which an episode is truncated, or None for jumanji's own.
        **kwargs: arguments of the environment's constructor, e.g. a generator.

    Raises:
        InvalidEnvironment: if jumanji rejects the arguments or cannot download levels, or the
            action mask has an unknown shape.
    """
    env = _made(env_id, kwargs)
    limit = getattr(env, "time_limit", None) if time_limit is None else time_limit
    if limit is not None:
        # Only SearchAndRescue uses its limit for anything else: it scales rewards by the time left.
        env = _made(env_id, {**kwargs, "time_limit": limit + 1})
    ends = jnp.inf if limit is None else limit
    obs = jax.eval_shape(
        lambda key: _scaled(env.reset(key)[1].observation, ends), jax.random.key(0)
    )
    mask = getattr(obs, "action_mask", None)
    return JumanjiEnv(
        env,
        env_id,
        _observation_space(env.observation_spec, obs),
        _action_space(env_id, env.action_spec, mask),
        ends,
    )


def _made(env_id: str, kwargs: dict[str, Any]) -> Any:
    try:
        return _jumanji().make(env_id, **kwargs)
    except (TypeError, ValueError) as error:
        raise InvalidEnvironment(f"jumanji:{env_id} cannot be made: {error}") from error
    except (IndexError, OSError) as error:  # Sokoban downloads its levels
        raise InvalidEnvironment(f"jumanji:{env_id} could not download its levels") from error


def _scaled(obs: PyTree, limit: float) -> PyTree:
    """Replace an observed step count by the elapsed fraction of the limit: [] float32 in [0, 1]."""
    if limit == jnp.inf:
        return obs
    clocks = {c: getattr(obs, c) / jnp.float32(limit) for c in CLOCKS if hasattr(obs, c)}
    return obs._replace(**clocks)


def _observation_space(spec: Any, obs: PyTree) -> Any:
    """The spaces of an observation, with actual shapes and types, and bounds from jumanji."""

    def space(path: tuple[Any, ...], leaf: Any) -> spaces.Space:
        part = spec
        for entry in path:
            part = part[entry.name]
        dtype = np.dtype(leaf.dtype)
        if path[-1].name in CLOCKS:
            return spaces.Box(0, _last(dtype), leaf.shape, dtype)
        if hasattr(part, "num_values") and not leaf.shape:
            return spaces.Discrete(int(part.num_values))
        low: Any = getattr(part, "minimum", -np.inf)
        high: Any = getattr(part, "maximum", np.inf)
        if dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            low, high = np.maximum(low, bounds.min), np.minimum(high, bounds.max)
        return spaces.Box(np.asarray(low), np.asarray(high), leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(space, obs)


def _last(dtype: np.dtype) -> int:
    """The upper bound of an observed step count: 1 for a fraction, else that of the type."""
    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def _action_space(name: str, spec: Any, mask: Any) -> Any:
    """The space of actions; it is joint if the mask covers combinations of choices.

    Raises:
        InvalidEnvironment: if the mask has neither supported shape.
    """
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return spaces.Box(spec.minimum, spec.maximum, spec.shape, dtype)
    values: Any = getattr(spec, "num_values", None)
    if values is None:
        values = np.broadcast_to(spec.maximum + 1, spec.shape)
    if np.ndim(values) == 0:
        return spaces.Discrete(int(values))
    sizes = tuple(int(n) for n in np.ravel(values))
    joint = mask is not None and name.startswith(JOINT)
    expected = sizes if joint else (len(sizes), max(sizes))
    if mask is not None and mask.shape != expected:
        raise InvalidEnvironment(
            f"the action mask of jumanji:{name} for actions {sizes} has shape {mask.shape}; "
            f"expected {expected}"
        )
    return spaces.MultiDiscrete(sizes, dtype, joint)
