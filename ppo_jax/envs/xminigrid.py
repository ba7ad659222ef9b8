"""Suite `xminigrid`: MiniGrid tasks and XLand rules, with partial observations of the grid."""

import dataclasses
import functools
import re
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class XMiniGridEnv:
    """An xminigrid environment; its state is a TimeStep of xminigrid.

    Attributes:
        env: xminigrid.environment.Environment, possibly wrapped.
        params: parameters of the environment; sizes are static, an XLand ruleset may be traced.
        name: id of the environment.
        observation_space: Box of [V, V, 2] int8 with (tile, colour), or a dict with more entries.
        action_space: Discrete(6).
    """

    env: Any
    params: Any
    name: str
    observation_space: Any
    action_space: spaces.Discrete

    @property
    def shortest_episode(self) -> int:
        """The minimum episode length: H + W − 6 moves and one turn in an empty room, else 1."""
        empty = re.fullmatch(r"MiniGrid-Empty-\d+x\d+", self.name)
        way = self.params.height + self.params.width - 5 if empty else 1
        return min(way, self.time_limit)

    @property
    def time_limit(self) -> int:
        """max_steps of xminigrid."""
        return int(self.params.max_steps)

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start a new episode: (obs, state)."""
        timestep = self.env.reset(params, key)
        return _cells(timestep.observation), timestep

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step; the last one has discount 0 for a termination, 1 for the time limit."""
        timestep = self.env.step(params, state, action)
        last, alive = timestep.last(), timestep.discount > 0
        reward = jnp.asarray(timestep.reward, jnp.float32)
        obs = _cells(timestep.observation)
        return obs, timestep, reward, last & ~alive, last & alive, {}

    def render(self, state: PyTree) -> np.ndarray:
        """An image [H, W, 3] uint8 of the grid, with the observed part highlighted."""
        return np.asarray(self.env.render(self.params, state), np.uint8)


@functools.cache
def _xminigrid() -> ModuleType:
    import xminigrid

    return xminigrid


def names() -> list[str]:
    """Ids of the suite."""
    return list(_xminigrid().registered_environments())


def make(
    env_id: str, *, direction: bool = False, rules: bool = False, **kwargs: Any
) -> XMiniGridEnv:
    """Make the environment that xminigrid registers under this id.

    Args:
        env_id: id, e.g. "MiniGrid-DoorKey-8x8" or "XLand-MiniGrid-R1-9x9".
        direction: whether to observe a dict of "img" and "direction" [4], the one-hot direction of
            the agent.
        rules: whether to observe a dict of "img", "goal_encoding" and "rule_encoding", for XLand.
        **kwargs: fields of the parameters, such as view_size, max_steps or ruleset.

    Raises:
        InvalidEnvironment: if there is no such parameter.
    """
    from xminigrid import wrappers

    env, params = _xminigrid().make(env_id)
    try:
        params = params.replace(**kwargs)
    except TypeError as error:
        raise InvalidEnvironment(f"xminigrid:{env_id} cannot be made: {error}") from error
    if direction:
        env = wrappers.DirectionObservationWrapper(env)
    if rules:
        if not hasattr(params, "ruleset"):
            raise InvalidEnvironment(f"xminigrid:{env_id} has no ruleset to observe")
        env = wrappers.RulesAndGoalsObservationWrapper(env)
    obs = jax.eval_shape(lambda key: _cells(env.reset(params, key).observation), jax.random.key(0))
    actions = spaces.Discrete(int(env.num_actions(params)))
    return XMiniGridEnv(env, params, env_id, jax.tree.map(_box, obs), actions)


def _cells(obs: PyTree) -> PyTree:
    """Convert tiles, colours and rules, numbers below 128, to int8, so that no network scales them
    as pixels."""
    return jax.tree.map(lambda x: x.astype(jnp.int8) if x.dtype == jnp.uint8 else x, obs)


def _box(leaf: Any) -> spaces.Box:
    return spaces.Box(0, 127 if leaf.dtype == jnp.int8 else 1, leaf.shape, np.dtype(leaf.dtype))
