"""Frame stacking: the last frames of an image environment as one observation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax.envs import spaces
from ppo_jax.envs.protocol import (
    Env,
    InvalidEnvironment,
    StepResult,
    delegated,
    display_name,
    render,
)
from ppo_jax.types import PyTree


@struct.dataclass
class StackState:
    """The state of an environment and its last frames.

    Attributes:
        env_state: state of the wrapped environment.
        frames: [H, W, k C] frames, the newest last; frames before the episode are 0.
    """

    env_state: PyTree
    frames: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class FrameStack:
    """An image environment whose observation has the last k frames as channels, the newest last.

    The frames are part of the state. Therefore each reset starts without earlier frames, and a
    final observation contains the frames of its own episode, however the environment is reset.

    Attributes:
        env: environment with observations [H, W, C].
        frames: number k of frames.
    """

    env: Env
    frames: int = 4

    def __post_init__(self) -> None:
        space = self.env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise InvalidEnvironment(
                f"frames must be images [H, W, C], but the observations of {self.name} are {space}"
            )
        if self.frames < 1:
            raise InvalidEnvironment(f"frames is {self.frames}; it must be >= 1")

    name = property(lambda self: display_name(self.env))
    params, action_space = delegated("params"), delegated("action_space")
    time_limit, shortest_episode = delegated("time_limit"), delegated("shortest_episode", 1)

    @property
    def observation_space(self) -> spaces.Space:
        one: Any = self.env.observation_space
        low, high = (np.tile(bound, self.frames) for bound in (one.low, one.high))
        return spaces.Box(np.minimum(low, 0), np.maximum(high, 0), low.shape, one.dtype)

    def reset(self, key: jax.Array, params: PyTree) -> tuple[jax.Array, StackState]:
        """Start a new episode: (frames [H, W, k C] with only the first frame, state)."""
        frame, state = self.env.reset(key, params)
        empty = jnp.zeros((*frame.shape[:-1], self.frames * frame.shape[-1]), frame.dtype)
        frames = push(empty, frame)
        return frames, StackState(state, frames)

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: PyTree) -> StepResult:
        """Take one step; the new frame replaces the oldest one."""
        frame, inner, reward, terminated, truncated, info = self.env.step(
            key, state.env_state, action, params
        )
        frames = push(state.frames, frame)
        return frames, StackState(inner, frames), reward, terminated, truncated, info

    def render(self, state: StackState) -> np.ndarray:
        """An image [H, W, 3] uint8, drawn by the wrapped environment."""
        return render(self.env, state.env_state)


def push(frames: jax.Array, frame: jax.Array) -> jax.Array:
    """[H, W, k C] shifted by C channels, with a new frame as the last C channels.

    The function uses roll and set rather than concatenate, because XLA on CPUs fuses the
    computation of the frame into a concatenation and repeats it for every pixel.
    """
    channels = frame.shape[-1]
    return jnp.roll(frames, -channels, axis=-1).at[..., -channels:].set(frame)
