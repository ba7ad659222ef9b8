"""Conversion of observations of any space to the inputs of a network."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax.envs import spaces
from ppo_jax.types import PyTree

# Rows are linear combinations of the last frames I_{t-2}, I_{t-1}, I_t. The rows of "differences"
# are acceleration, velocity and position.
FRAME_MIXES: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": (),
    "differences": ((1, -2, 1), (0, -1, 1), (0, 0, 1)),
}


@struct.dataclass
class Features:
    """An image for convolutions, and further features that are appended to their output.

    Attributes:
        image: [..., H, W, C] image.
        rest: [..., F] further features.
    """

    image: jax.Array
    rest: jax.Array


def preprocess(
    space: PyTree, obs: PyTree, image: bool, frame_mix: str = "none", *, of_critic: bool = False
) -> jax.Array | Features:
    """Convert an observation to the float features that a network takes.

    Integers with a known range are converted to one-hot vectors, one for each component. Bits and
    numbers are used as they are. Bytes are divided by the upper bound of their space, which is 255
    for pixels. Everything except images is flattened, and the leaves of a pytree are concatenated
    in the order of jax.tree. The action mask is left out, and the entry `critic_observation` as
    well, unless the network is the critic.

    Args:
        space: observation space, or a pytree of spaces.
        obs: [..., *space.shape] observations, or a pytree of them.
        image: whether the only leaf of shape [H, W, C] is kept as an image for a CNN.
        frame_mix: linear combination of the frames of an image, as for `mix_frames`.
        of_critic: whether the network is the critic rather than the actor.

    Returns:
        [..., F] or [..., H, W, C] float32; Features if there are an image and other leaves.
    """
    described, given = (spaces.leaves(tree, of_critic=of_critic) for tree in (space, obs))
    pairs = zip(described, given, strict=True)
    images, rest = [], []
    for (_, leaf), (_, x) in pairs:
        x = mix_frames(_numbers(leaf, x), frame_mix) if spaces.is_image(leaf) else x
        if image and spaces.is_image(leaf):
            images.append(x)
        else:
            rest.append(_flat(leaf, x))
    if not images:
        return _beside(rest)
    return Features(images[0], _beside(rest)) if rest else images[0]


class Inputs(NamedTuple):
    """The inputs of actor and critic, as functions of an observation.

    Attributes:
        space: observation space, or a pytree of spaces.
        image: whether the only leaf of shape [H, W, C] is kept as an image for a CNN.
        frame_mix: name in FRAME_MIXES.
    """

    space: PyTree
    image: bool
    frame_mix: str

    def of_actor(self, obs: PyTree) -> jax.Array | Features:
        """The features of an observation that the actor receives."""
        return preprocess(self.space, obs, self.image, self.frame_mix)

    def of_critic(self, obs: PyTree, x: jax.Array | Features) -> jax.Array | Features:
        """The features that the critic receives.

        Args:
            obs: observation of the same step as x.
            x: result of `of_actor`, which is returned unless the critic has an entry of its own.
        """
        if not self._asymmetric:
            return x
        return preprocess(self.space, obs, self.image, self.frame_mix, of_critic=True)

    def lacks_critic(self, obs: PyTree) -> bool:
        """Whether an observation lacks the critic's entry, as that of a deployed agent does."""
        return self._asymmetric and spaces.critic_observation(obs) is None

    @property
    def _asymmetric(self) -> bool:
        return spaces.critic_observation(self.space) is not None


def inputs_of(space: PyTree, image: bool, frame_mix: str, shared_torso: bool) -> Inputs:
    """The inputs of actor and critic, after a check.

    Args:
        space, image, frame_mix: attributes of Inputs.
        shared_torso: whether actor and critic share their hidden layers.

    Raises:
        ValueError: if there is to be an image but not exactly one, or the torso is shared although
            the critic has an observation of its own.
    """
    if image:
        spaces.image(space)
    if shared_torso and spaces.critic_observation(space) is not None:
        raise ValueError(
            "actor and critic cannot share a torso, because the entry "
            f"{spaces.CRITIC_OBSERVATION} is an input of the critic alone; use shared_torso=False"
        )
    return Inputs(space, image, frame_mix)


def mix_frames(x: jax.Array, mix: str) -> jax.Array:
    """Replace stacked frames by their differences, before the first layer of a network.

    I_t − 2 I_{t−1} + I_{t−2},   I_t − I_{t−1},   I_t

    This is a fixed and invertible change of basis (its own inverse), which only changes the initial
    function of a network. It is applied in the network rather than in the environment, so that
    frames are stored as bytes.

    Args:
        x: [..., 3] frames, the newest last.
        mix: name in FRAME_MIXES.

    Returns:
        Mixed frames, of the shape of x.

    Source: schinger/PPO-simplest, FramePreStacking.
    """
    rows = FRAME_MIXES[mix]
    if not rows:
        return x
    frames = [x[..., i] for i in range(len(rows))]
    mixed = [sum(c * f for c, f in zip(row, frames, strict=True) if c) for row in rows]
    return jnp.stack(mixed, axis=-1)


def batch_shape(space: PyTree, obs: PyTree) -> tuple[int, ...]:
    """The leading dimensions of an observation, in front of the shape of its space."""
    (_, leaf), (_, x) = spaces.leaves(space)[0], spaces.leaves(obs)[0]
    return x.shape[: x.ndim - len(leaf.shape)]


def one_hots(sizes: Sequence[int], x: jax.Array) -> jax.Array:
    """Convert integers [..., D], component i below sizes[i], to one-hot vectors [..., Σ sizes]."""
    return _beside([jax.nn.one_hot(x[..., i], n) for i, n in enumerate(sizes)])


def _flat(space: spaces.Space, x: jax.Array) -> jax.Array:
    """Flatten [..., *space.shape] to [..., F]."""
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(x, space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return one_hots(space.sizes, x)
    numbers = _numbers(space, x)
    return numbers.reshape(*numbers.shape[: numbers.ndim - len(space.shape)], -1)


def _numbers(space: spaces.Space, x: jax.Array) -> jax.Array:
    """Floats of the same shape, with bytes scaled to [0, 1]."""
    scale = 1.0
    if isinstance(space, spaces.Box) and x.dtype == jnp.uint8:
        # One bound for all pixels preserves their relative brightness.
        scale = max(float(np.max(space.high)), 1.0)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) / scale


def _beside(parts: Sequence[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
