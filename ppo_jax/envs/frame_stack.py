"""The last frames of an image environment as one observation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import Env, InvalidEnvironment, StepResult, render
from ppo_jax.types import PyTree


@struct.dataclass
class StackState:
    """An environment's state and what it showed.

    Attributes:
        env_state: of the environment inside.
        frames: [H, W, k C], newest last, 0 before the episode began.
    """

    env_state: PyTree
    frames: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class FrameStack:
    """Any image environment with the last k frames side by side in the channels, newest last.

    The history belongs to the state, so each reset starts without one, and a final observation
    keeps that of its own episode, whoever restarts the environment.

    Attributes:
        env: observes [H, W, C].
        frames: k.
    """

    env: Env
    frames: int = 4

    def __post_init__(self) -> None:
        space = self.env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise InvalidEnvironment(
                f"frames are images [H, W, C]; observations of {self.name} are {space}"
            )
        if self.frames < 1:
            raise InvalidEnvironment(f"frames is {self.frames}; it must be >= 1")

    @property
    def name(self) -> str:
        return getattr(self.env, "name", type(self.env).__name__)

    @property
    def params(self) -> Any:
        return self.env.params

    @property
    def observation_space(self) -> spaces.Space:
        one: Any = self.env.observation_space
        low, high = (np.tile(bound, self.frames) for bound in (one.low, one.high))
        return spaces.Box(np.minimum(low, 0), np.maximum(high, 0), low.shape, one.dtype)

    @property
    def action_space(self) -> spaces.Space:
        return self.env.action_space

    @property
    def time_limit(self) -> float | None:
        return self.env.time_limit

    @property
    def shortest_episode(self) -> int:
        return getattr(self.env, "shortest_episode", 1)

    def reset(self, key: jax.Array, params: PyTree) -> tuple[jax.Array, StackState]:
        """(frames [H, W, k C] with the first frame alone, state) of a new episode."""
        frame, state = self.env.reset(key, params)
        empty = jnp.zeros((*frame.shape[:-1], self.frames * frame.shape[-1]), frame.dtype)
        frames = push(empty, frame)
        return frames, StackState(state, frames)

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: PyTree) -> StepResult:
        """One transition; the oldest frame gives way to the new one."""
        frame, inner, reward, terminated, truncated, info = self.env.step(
            key, state.env_state, action, params
        )
        frames = push(state.frames, frame)
        return frames, StackState(inner, frames), reward, terminated, truncated, info

    def render(self, state: StackState) -> np.ndarray:
        """[H, W, 3] uint8, drawn by the environment inside."""
        return render(self.env, state.env_state)


def push(frames: jax.Array, frame: jax.Array) -> jax.Array:
    """[H, W, k C] with its last C channels replaced by a new frame, after moving all to the front.

    By roll and set and not by concatenation, into which XLA on CPUs fuses what draws the frame,
    the game included, once per pixel: 60 times slower.
    """
    channels = frame.shape[-1]
    return jnp.roll(frames, -channels, axis=-1).at[..., -channels:].set(frame)
