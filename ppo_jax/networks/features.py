"""Observations of any space as the numbers a network takes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ppo_jax.envs import spaces
from ppo_jax.types import PyTree

# Rows are what the network sees of the last frames I_{t-2}, I_{t-1}, I_t. "differences" are
# acceleration, velocity and position.
FRAME_MIXES: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": (),
    "differences": ((1, -2, 1), (0, -1, 1), (0, 0, 1)),
}


@struct.dataclass
class Features:
    """A picture for convolutions, and the numbers that join behind them.

    Attributes:
        image: [..., H, W, C].
        rest: [..., F].
    """

    image: jax.Array
    rest: jax.Array


def preprocess(
    space: PyTree, obs: PyTree, image: bool, frame_mix: str = "none"
) -> jax.Array | Features:
    """An observation as the float features a network takes.

    Integers with a known range become one-hot, a vector per component; bits and numbers are
    themselves; bytes are divided by the upper bound of their space, which is 255 for pixels. What
    is not an image is flattened, and the leaves of a tree are laid side by side in jax.tree's
    order. The action mask is left out.

    Args:
        space: observation space, or the pytree of them.
        obs: [..., *space.shape], or a pytree of such.
        image: keep the only leaf with a shape [H, W, C] for a CNN.
        frame_mix: what is made of the frames of an image, as in `mix_frames`.

    Returns:
        [..., F] or [..., H, W, C] float32; Features where the image has company.
    """
    pairs = zip(spaces.leaves(space), spaces.leaves(obs), strict=True)
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


def mix_frames(x: jax.Array, mix: str) -> jax.Array:
    """Frames as their differences, before the first layer of a network.

    I_t − 2 I_{t−1} + I_{t−2},   I_t − I_{t−1},   I_t

    A fixed and invertible change of basis (it is its own inverse): what it changes is where a
    network starts. Here and not in the environment, the history is kept as bytes.

    Args:
        x: [..., 3], the newest frame last.
        mix: name in FRAME_MIXES.

    Returns:
        x's shape.

    Source: schinger/PPO-simplest, FramePreStacking.
    """
    rows = FRAME_MIXES[mix]
    if not rows:
        return x
    frames = [x[..., i] for i in range(len(rows))]
    mixed = [sum(c * f for c, f in zip(row, frames, strict=True) if c) for row in rows]
    return jnp.stack(mixed, axis=-1)


def batch_shape(space: PyTree, obs: PyTree) -> tuple[int, ...]:
    """The leading dimensions of an observation, those that its space does not know of."""
    (_, leaf), (_, x) = spaces.leaves(space)[0], spaces.leaves(obs)[0]
    return x.shape[: x.ndim - len(leaf.shape)]


def one_hots(sizes: Sequence[int], x: jax.Array) -> jax.Array:
    """Integers [..., D], component i below sizes[i], as [..., Σ sizes] one-hot vectors."""
    return _beside([jax.nn.one_hot(x[..., i], n) for i, n in enumerate(sizes)])


def _flat(space: spaces.Space, x: jax.Array) -> jax.Array:
    """[..., *space.shape] -> [..., F]."""
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(x, space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return one_hots(space.sizes, x)
    numbers = _numbers(space, x)
    return numbers.reshape(*numbers.shape[: numbers.ndim - len(space.shape)], -1)


def _numbers(space: spaces.Space, x: jax.Array) -> jax.Array:
    """Floats of the same shape, bytes scaled to [0, 1]."""
    scale = 1.0
    if isinstance(space, spaces.Box) and x.dtype == jnp.uint8:
        # The bound is one number: pixels keep their proportions.
        scale = max(float(np.max(space.high)), 1.0)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) / scale


def _beside(parts: Sequence[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
