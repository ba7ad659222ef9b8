"""Suite `navix`: MiniGrid's rooms, from above or through the agent's eyes.

navix resets in the step after the last one; `_step` is its transition without that.
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

# Name of an observation -> (largest value, dtype). Cells are (entity, colour, state), numbers
# below 128: int8, so that no network takes them for the brightness of pixels.
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
    """A navix environment; its state is navix's Timestep.

    Attributes:
        env: navix.environments.Environment.
        name: id.
        observation_space: Box [H, W] or [H, W, C].
        action_space: Discrete(7), MiniGrid's actions.
        shortest_episode: the straight way to the goal in an empty room, else 1.
        params: ().
    """

    env: Any
    name: str
    observation_space: spaces.Box
    action_space: spaces.Discrete
    shortest_episode: int
    params: tuple[()] = ()

    @property
    def time_limit(self) -> int:
        """navix's max_steps."""
        return int(self.env.max_steps)

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """(obs, state) of a new episode."""
        timestep = self.env.reset(key, None if self._draws else _no_cache())
        return self._observation(timestep), timestep

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """One transition; where both end at once, navix calls it termination."""
        timestep = self.env._step(state, action)
        reward = timestep.reward.astype(jnp.float32)
        ends = timestep.is_termination(), timestep.is_truncation()
        return self._observation(timestep), timestep, reward, *ends, {}

    def render(self, state: PyTree) -> np.ndarray:
        """[H, W, 3] uint8: the whole room."""
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
    """Instead of the picture of the room in every state, 12 kB for 8 × 8 cells."""
    from navix.rendering.cache import RenderingCache

    return RenderingCache(patches=jnp.zeros(0, jnp.uint8))


def names() -> list[str]:
    """Ids of the suite."""
    return list(_navix().registry())


def make(env_id: str, *, observation: str = "symbolic", **kwargs: Any) -> NavixEnv:
    """The environment navix registers under this id.

    Args:
        env_id: e.g. "Navix-DoorKey-6x6-v0".
        observation: one of OBSERVATIONS: symbolic or categorical cells, or rgb pixels, of the whole
            room or as the agent sees it.
        **kwargs: of navix.make; max_steps (100) is the time limit.

    Raises:
        InvalidEnvironment: an unknown observation, or arguments that navix refuses.
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
    """From corner to corner there are H + W − 6 steps and one turn; from anywhere else, one."""
    return 1 if env.random_start else env.height + env.width - 5
