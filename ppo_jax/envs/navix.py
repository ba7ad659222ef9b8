"""Suite `navix`: MiniGrid environments, observed from above or from the agent's position.

`step` of navix resets an environment in the step after the end of an episode; `_step` does not.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config.options import did_you_mean
from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.types import PyTree

# Name of an observation -> (largest value, dtype). Cells are (entity, colour, state), numbers below
# 128. They are int8, so that no network scales them as pixels.
OBSERVATIONS = {
    "symbolic": (127, np.int8),
    "symbolic_first_person": (127, np.int8),
    "categorical": (127, np.int8),
    "categorical_first_person": (127, np.int8),
    "rgb": (255, np.uint8),
    "rgb_first_person": (255, np.uint8),
}


@dataclasses.dataclass(frozen=True, eq=False)
class NavixEnv:
    """A navix environment; its state is a Timestep of navix.

    Attributes:
        env: navix.environments.Environment.
        name: id of the environment.
        observation_space: Box of [H, W] or [H, W, C].
        action_space: Discrete(7), the actions of MiniGrid.
        shortest_episode: number of steps to the goal in an empty room, else 1.
        params: () (no parameters).
    """

    env: Any
    name: str
    observation_space: spaces.Box
    action_space: spaces.Discrete
    shortest_episode: int
    params: tuple[()] = ()

    @property
    def time_limit(self) -> int:
        """max_steps of navix."""
        return int(self.env.max_steps)

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start a new episode: (obs, state)."""
        timestep = self.env.reset(key, None if self._draws else _no_cache())
        return self._observation(timestep), timestep

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step; if an episode terminates at the time limit, it is a termination."""
        timestep = self.env._step(state, action)
        reward = timestep.reward.astype(jnp.float32)
        ends = timestep.is_termination(), timestep.is_truncation()
        return self._observation(timestep), timestep, reward, *ends, {}

    def render(self, state: PyTree) -> np.ndarray:
        """An image [H, W, 3] uint8 of the whole room."""
        from navix import observations
        from navix.rendering.cache import RenderingCache

        grid = state.state.grid
        return np.asarray(
            observations.rgb(state.state.replace(cache=RenderingCache.init(grid))), np.uint8
        )

    @property
    def _draws(self) -> bool:
        return self.observation_space.dtype == np.uint8

    def _observation(self, timestep: Any) -> jax.Array:
        return timestep.observation.astype(self.observation_space.dtype)


@functools.cache
def _navix() -> ModuleType:
    import navix

    return navix


def _no_cache() -> Any:
    """An empty cache, which avoids storing an image of the room in every state."""
    from navix.rendering.cache import RenderingCache

    return RenderingCache(patches=jnp.zeros(0, jnp.uint8))


def names() -> list[str]:
    """Ids of the suite."""
    return list(_navix().registry())


def make(env_id: str, *, observation: str = "symbolic", **kwargs: Any) -> NavixEnv:
    """Make the environment that navix registers under this id.

    Args:
        env_id: id, e.g. "Navix-DoorKey-6x6-v0".
        observation: name in OBSERVATIONS: symbolic or categorical cells, or rgb pixels, of the
            whole room or of the part that the agent observes.
        **kwargs: arguments of navix.make; max_steps (100) is the time limit.

    Raises:
        InvalidEnvironment: if the observation is unknown, or navix rejects the arguments.
    """
    if observation not in OBSERVATIONS:
        raise InvalidEnvironment(
            f"unknown observation {observation!r}; {did_you_mean(observation, OBSERVATIONS)}"
        )
    high, dtype = OBSERVATIONS[observation]
    function = getattr(_navix().observations, observation)
    try:
        env = _navix().make(env_id, observation_fn=function, **kwargs)
    except (TypeError, ValueError) as error:
        raise InvalidEnvironment(f"navix:{env_id} cannot be made: {error}") from error
    shape = jax.eval_shape(env.reset, jax.random.key(0)).observation.shape
    box = spaces.Box(0, high, shape, dtype)
    shortest = _shortest(env) if env_id.startswith("Navix-Empty") and not kwargs else 1
    return NavixEnv(env, env_id, box, spaces.Discrete(len(env.action_set)), shortest)


def _shortest(env: Any) -> int:
    """The minimum episode length: H + W − 6 moves and one turn from corner to corner, else 1."""
    return 1 if env.random_start else env.height + env.width - 5
