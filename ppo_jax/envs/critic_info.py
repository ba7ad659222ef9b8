"""Observations of the critic that a Gymnasium environment returns in its info.

A copy of such an environment is wrapped. Its observation is then a dictionary with an entry
`critic_observation`, which only the critic receives.
"""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces as theirs

from ppo_jax.envs.codec import OBSERVATION
from ppo_jax.envs.protocol import InvalidEnvironment
from ppo_jax.envs.spaces import CRITIC_OBSERVATION


def find(env: Any, name: str) -> theirs.Box | None:
    """The space of the entry `critic_observation` in the info of reset and step.

    An entry of the observation with this name has precedence. The environment is reset once and not
    stepped.

    Args:
        env: Gymnasium environment.
        name: name of the environment, for messages.

    Returns:
        Box of float32 without bounds, or None if there is no such entry in the info.

    Raises:
        InvalidEnvironment: if the entry is not an array of numbers.
    """
    space = env.observation_space
    if isinstance(space, theirs.Dict) and CRITIC_OBSERVATION in space.spaces:
        return None
    try:
        _, info = env.reset(seed=0)
    except Exception:  # the error is reported when the environments are started
        return None
    if not isinstance(info, dict) or CRITIC_OBSERVATION not in info:
        return None
    try:
        found = np.asarray(info[CRITIC_OBSERVATION], np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidEnvironment(
            f'info["{CRITIC_OBSERVATION}"] of {name} is a '
            f"{type(info[CRITIC_OBSERVATION]).__name__}; it must be an array of numbers of one "
            "shape; for several arrays, use an entry of a Dict observation with this name"
        ) from error
    return theirs.Box(-np.inf, np.inf, found.shape, np.float32)


def wrapped(make_one: Callable[[], Any], space: theirs.Box | None, name: str) -> Callable[[], Any]:
    """A function that makes an environment with the critic's observation in its observation.

    Args:
        make_one: function that makes the original environment.
        space: result of `find`; with None nothing is changed.
        name: name of the environment, for messages.
    """
    return make_one if space is None else functools.partial(_wrap, make_one, space, name)


def _wrap(make_one: Callable[[], Any], space: theirs.Box, name: str) -> Any:
    return CriticInfoEnv(make_one(), space, name)


def spaces_with(space: Any, extra: theirs.Box | None) -> Any:
    """The observation space of a wrapped environment.

    Args:
        space: observation space of the original environment.
        extra: result of `find`; with None nothing is changed.
    """
    if extra is None:
        return space
    parts = dict(space.spaces) if isinstance(space, theirs.Dict) else {OBSERVATION: space}
    return theirs.Dict({**parts, CRITIC_OBSERVATION: extra})


class CriticInfoEnv(gymnasium.Wrapper):
    """An environment whose observation has the entry `critic_observation` of its info.

    Args:
        env: original environment.
        space: space of the entry.
        name: name of the environment, for messages.
    """

    def __init__(self, env: Any, space: theirs.Box, name: str) -> None:
        super().__init__(env)
        self.observation_space = spaces_with(env.observation_space, space)
        self._alone, self._name = not isinstance(env.observation_space, theirs.Dict), name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """(observation with the entry, info)."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._observed(obs, info), info

    def step(self, action: Any) -> Any:
        """The result of the environment's step, with the entry in the observation."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._observed(obs, info), reward, terminated, truncated, info

    def _observed(self, obs: Any, info: Any) -> dict[str, Any]:
        if CRITIC_OBSERVATION not in info:
            raise ValueError(
                f"{self._name}: info has no {CRITIC_OBSERVATION} here, although that of the first "
                "reset has one; add it to the info of every reset and step"
            )
        parts = {OBSERVATION: obs} if self._alone else obs
        return {**parts, CRITIC_OBSERVATION: np.asarray(info[CRITIC_OBSERVATION], np.float32)}
