"""Action masks of Gymnasium environments that are separate from the observation, or in parts.

A copy of such an environment is wrapped. Its observation is then a dictionary with an entry
`action_mask` in the layout that policies use.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces as theirs

from ppo_jax.envs.codec import OBSERVATION
from ppo_jax.envs.host_spaces import structured_mask
from ppo_jax.envs.mask_layouts import MaskLayout, arrays_of, layout_of
from ppo_jax.envs.protocol import InvalidEnvironment
from ppo_jax.envs.spaces import ACTION_MASK

# Sources of a mask, written as in the user's code.
INFO, METHOD = 'info["action_mask"]', "env.get_wrapper_attr('action_masks')()"
CHOICES = theirs.Discrete | theirs.MultiDiscrete | theirs.MultiBinary


class Masks(NamedTuple):
    """The action masks of an environment.

    Attributes:
        source: INFO, METHOD, or "" for an entry of the observation.
        layout: layout of the mask.
    """

    source: str
    layout: MaskLayout


def find(env: Any, name: str) -> Masks | None:
    """The masks of an environment that must be added to its observation.

    An entry `action_mask` of the observation is the mask. Without one, the mask is the result of a
    method `action_masks()` of the environment or of a wrapper, or the entry `action_mask` in the
    info of reset and step. The environment is reset once and not stepped.

    Args:
        env: Gymnasium environment.
        name: name of the environment, for messages.

    Returns:
        Masks, or None if there is no mask or it is a plain entry of the observation.

    Raises:
        InvalidEnvironment: if a mask does not fit the actions.
    """
    if not isinstance(env.action_space, CHOICES):
        return None
    layout = structured_mask(env.observation_space, env.action_space, name)
    if layout is not None:
        return Masks("", layout)
    spaces = env.observation_space
    if isinstance(spaces, theirs.Dict) and ACTION_MASK in spaces.spaces:
        return None
    try:
        _, info = env.reset(seed=0)
    except Exception:  # the error is reported when the environments are started
        return None
    if has_method(env):
        source, mask = METHOD, _called(env, name)
    elif isinstance(info, dict) and ACTION_MASK in info:
        source, mask = INFO, info[ACTION_MASK]
    else:
        return None
    layout = layout_of(arrays_of(mask), env.action_space, f"{source} of {name}")
    return Masks(source, layout)


def _called(env: Any, name: str) -> Any:
    """The result of `action_masks()`.

    Raises:
        InvalidEnvironment: if the method raised an error.
    """
    try:
        return env.get_wrapper_attr("action_masks")()
    except Exception as error:
        raise InvalidEnvironment(
            f"action_masks() of {name} failed after the first reset: {type(error).__name__}: "
            f"{error}; it must return the legal actions after every reset and step"
        ) from error


def has_method(env: Any) -> bool:
    """Whether the environment or one of its wrappers has a method `action_masks`."""
    try:
        return callable(env.get_wrapper_attr("action_masks"))
    except AttributeError:
        return False


def wrapped(make_one: Callable[[], Any], masks: Masks | None, name: str) -> Callable[[], Any]:
    """A function that makes an environment with the mask in its observation.

    Args:
        make_one: function that makes the original environment.
        masks: result of `find`; with None nothing is changed.
        name: name of the environment, for messages.
    """
    return make_one if masks is None else functools.partial(_wrap, make_one, masks, name)


def _wrap(make_one: Callable[[], Any], masks: Masks, name: str) -> Any:
    return MaskedEnv(make_one(), masks, name)


def masked_spaces(space: Any, actions: Any, masks: Masks | None) -> tuple[Any, Any]:
    """The spaces of a wrapped environment.

    Args:
        space, actions: spaces of the original environment.
        masks: result of `find`; with None nothing is changed.
    """
    if masks is None:
        return space, actions
    parts = dict(space.spaces) if isinstance(space, theirs.Dict) else {OBSERVATION: space}
    mask = theirs.MultiBinary(list(masks.layout.shape))
    if isinstance(actions, theirs.MultiBinary):
        # With a mask, each bit is a choice between two options.
        actions = theirs.MultiDiscrete(list(masks.layout.sizes))
    return theirs.Dict({**parts, ACTION_MASK: mask}), actions


class MaskedEnv(gymnasium.Wrapper):
    """An environment with the mask as an entry of its observation.

    Args:
        env: original environment.
        masks: result of `find`.
        name: name of the environment, for messages.
    """

    def __init__(self, env: Any, masks: Masks, name: str) -> None:
        super().__init__(env)
        self.observation_space, self.action_space = masked_spaces(
            env.observation_space, env.action_space, masks
        )
        self._masks, self._name = masks, name
        self._alone = not isinstance(env.observation_space, theirs.Dict)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """(observation with the mask, info)."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._observed(obs, info), info

    def step(self, action: Any) -> Any:
        """The result of the environment's step, with the mask in the observation."""
        if isinstance(self.env.action_space, theirs.MultiBinary):
            action = np.asarray(action).reshape(self.env.action_space.shape).astype(np.int8)
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._observed(obs, info), reward, terminated, truncated, info

    def _observed(self, obs: Any, info: Any) -> dict[str, Any]:
        source, layout = self._masks
        if source == METHOD:
            mask = self.env.get_wrapper_attr("action_masks")()
        elif source == INFO:
            if ACTION_MASK not in info:
                raise ValueError(
                    f"{self._name}: info has no {ACTION_MASK} here, although that of the first "
                    "reset has one; add it to the info of every reset and step"
                )
            mask = info[ACTION_MASK]
        else:
            mask = obs[ACTION_MASK]
        parts = {OBSERVATION: obs} if self._alone else obs
        return {**parts, ACTION_MASK: layout.one(mask, self._name).astype(np.int8)}
