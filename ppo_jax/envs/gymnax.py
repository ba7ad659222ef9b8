"""Suite `gymnax`: the environments registered in gymnax 1.x, and any gymnax Environment object."""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.config.options import did_you_mean
from ppo_jax.envs import drawing, spaces
from ppo_jax.envs.protocol import InvalidEnvironment, StepResult
from ppo_jax.types import PyTree

# Lower bounds of the episode length with default parameters. For environments that are not listed,
# an episode may have a single step.
SHORTEST_EPISODE = {
    "CartPole-v1": 8,
    "Acrobot-v1": 32,
    "MountainCar-v0": 64,
    "MountainCarContinuous-v0": 32,
    "Pendulum-v1": 200,
    "Freeway-MinAtar": 2500,
    "Asterix-MinAtar": 4,
    "Breakout-MinAtar": 4,
    "SpaceInvaders-MinAtar": 5,
    "DeepSea-bsuite": 8,
    "Catch-bsuite": 9,
}


def _placeholder(name: str, **attributes: Any) -> ModuleType:
    """A module that imports the real one when an attribute is accessed (PEP 562)."""
    module = ModuleType(name)
    vars(module).update(attributes)

    def load(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(importlib.import_module(name), attribute)

    vars(module)["__getattr__"] = load
    return module


@functools.cache
def _gymnax() -> ModuleType:
    """gymnax without the plotting libraries that it imports.

    They take most of its import time, and seaborn and pandas need not be installed.
    """
    pyplot, colors = (_placeholder(f"matplotlib.{m}") for m in ("pyplot", "colors"))
    matplotlib = _placeholder("matplotlib", pyplot=pyplot, colors=colors)
    plotting = (matplotlib, pyplot, colors, _placeholder("seaborn"))
    deferred = {m.__name__: m for m in plotting}
    if not deferred.keys() & sys.modules.keys():
        sys.modules.update(deferred)
    try:
        return importlib.import_module("gymnax")
    finally:
        for name, module in deferred.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


@dataclasses.dataclass(frozen=True, eq=False)
class GymnaxEnv:
    """A gymnax environment without automatic reset.

    Attributes:
        env: gymnax Environment.
        params: parameters of the environment.
        name: id, for messages and images.
        observation_space, action_space: spaces for the parameters at construction.
        registered: whether it was made by its id alone, without arguments of its constructor.
    """

    env: Any
    params: Any
    name: str
    observation_space: Any
    action_space: Any
    registered: bool = False

    @property
    def time_limit(self) -> int | None:
        """max_steps_in_episode; None if it is traced."""
        limit = getattr(self.params, "max_steps_in_episode", None)
        return None if limit is None or isinstance(limit, jax.core.Tracer) else int(limit)

    @property
    def shortest_episode(self) -> int:
        """The known lower bound for a registered environment with default parameters, else 1."""
        if not self.registered:
            return 1
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(self.params)):
            return 1
        with jax.ensure_compile_time_eval():
            default = self.env.default_params
            pairs = zip(jax.tree.leaves(self.params), jax.tree.leaves(default), strict=True)
            unchanged = all(np.array_equal(a, b) for a, b in pairs)
        return SHORTEST_EPISODE.get(self.name, 1) if unchanged else 1

    def reset(self, key: jax.Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """Start a new episode: (obs, state)."""
        return self.env.reset_env(key, params)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step; the info of gymnax is dropped."""
        if self.registered and self.name in CORRECTED:
            obs, state, reward, terminated = CORRECTED[self.name](self.env, state, action, params)
        else:
            obs, state, reward, terminated, _ = self.env.step_env(key, state, action, params)
        truncated = self.env.is_truncated(state, params)
        reward = jnp.asarray(reward, jnp.float32)
        return obs, state, reward, jnp.asarray(terminated, bool), jnp.asarray(truncated, bool), {}

    def render(self, state: PyTree) -> np.ndarray:
        """An image [H, W, 3] uint8."""
        if self.name in drawing.PAINTERS:
            return drawing.PAINTERS[self.name](state, self.params)
        obs = np.asarray(self.env.observe(jax.random.key(0), state, None, self.params))
        if obs.ndim in (2, 3):
            return drawing.grid(obs)
        if hasattr(self.env, "render"):
            return drawing.figure(self.env.render(state, self.params)[0])
        raise InvalidEnvironment(f"environment {self.name} cannot be rendered")


def _mountain_car_continuous(env: Any, state: Any, action: jax.Array, params: Any) -> Any:
    """MountainCarContinuous with the dynamics of Gymnasium: (obs, state, reward, terminated).

    The left wall stops the car. In gymnax 1.0.1 the car keeps its velocity there, because gymnax
    sets the velocity to 0 at the goal rather than at the wall. The other four classic control
    tasks have the same dynamics as in Gymnasium.
    """
    force = jnp.clip(action, params.min_action, params.max_action).squeeze()
    velocity = state.velocity + force * params.power - jnp.cos(3 * state.position) * params.gravity
    velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
    position = jnp.clip(state.position + velocity, params.min_position, params.max_position)
    velocity = jnp.where((position <= params.min_position) & (velocity < 0), 0.0, velocity)
    terminated = (position >= params.goal_position) & (velocity >= params.goal_velocity)
    reward = 100.0 * terminated - 0.1 * jnp.square(action).squeeze()
    state = state.replace(position=position, velocity=velocity, time=state.time + 1)
    return env.get_obs(state), state, reward, terminated


# Registered environments whose dynamics differ between gymnax and Gymnasium under the same id.
CORRECTED = {"MountainCarContinuous-v0": _mountain_car_continuous}


def names() -> list[str]:
    """Ids of the suite."""
    return list(_gymnax().registered_envs)


def make(env_id: str, **kwargs: Any) -> GymnaxEnv:
    """Make the environment that gymnax registers under this id.

    Args:
        env_id: id, e.g. "CartPole-v1".
        **kwargs: fields of the environment's parameters, or arguments of its constructor.

    Raises:
        InvalidEnvironment: if a name is neither of these; the message suggests similar names.
    """
    _, params = _gymnax().make(env_id)
    fields = [f.name for f in dataclasses.fields(params)]
    overrides = {k: v for k, v in kwargs.items() if k in fields}
    arguments = {k: v for k, v in kwargs.items() if k not in fields}
    try:
        env, params = _gymnax().make(env_id, **arguments)
    except TypeError as error:
        unknown = next(iter(arguments))
        raise InvalidEnvironment(
            f"{env_id} has no parameter {unknown!r}; {did_you_mean(unknown, fields)}"
        ) from error
    return _wrap(env, params.replace(**overrides), env_id, registered=not arguments)


def recognizes(env: Any) -> bool:
    """Whether an object is a gymnax Environment, without importing gymnax."""
    return all(hasattr(env, a) for a in ("step_env", "reset_env", "default_params"))


def adapt(env: Any, params: Any = None) -> GymnaxEnv:
    """Convert a gymnax Environment object to an Env.

    Raises:
        InvalidEnvironment: if it is of gymnax 0.x, which does not distinguish truncation from
            termination, or a wrapper, whose step would be bypassed.
    """
    name = type(env).__name__
    if not hasattr(type(env), "step_env"):
        raise InvalidEnvironment(
            f"{name} is a gymnax wrapper: it changes step, which resets the environment, and not "
            "step_env; write its behaviour as a ppo_jax.envs.Env"
        )
    if not hasattr(env, "is_truncated"):
        raise InvalidEnvironment(
            f"{name} follows the API of gymnax 0.x (no is_truncated), in which a time limit cannot "
            "be distinguished from a termination; port it to gymnax 1.x or to ppo_jax.envs.Env"
        )
    return _wrap(env, env.default_params if params is None else params, env.name)


def _wrap(env: Any, params: Any, name: str, registered: bool = False) -> GymnaxEnv:
    # The spaces are static descriptions, concrete even inside a trace.
    with jax.ensure_compile_time_eval():
        observations = convert_space(env.observation_space(params))
        actions = convert_space(env.action_space(params))
    return GymnaxEnv(env, params, name, observations, actions, registered)


def convert_space(space: Any) -> Any:
    """Convert a gymnax space; Dict and Tuple become pytrees, an unknown space is returned as is."""
    if hasattr(space, "spaces"):
        parts = space.spaces
        if isinstance(parts, Mapping):
            return {name: convert_space(part) for name, part in parts.items()}
        return tuple(convert_space(part) for part in parts)
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    if hasattr(space, "low"):
        low, high = np.asarray(space.low), np.asarray(space.high)
        # gymnax represents an infinite bound by the largest float32.
        unbounded = np.finfo(np.float32).max
        low = np.where(low <= -unbounded, -np.inf, low)
        high = np.where(high >= unbounded, np.inf, high)
        return spaces.Box(low, high, tuple(space.shape), np.dtype(space.dtype))
    return space
