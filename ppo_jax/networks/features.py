"""Observations of any space as the numbers a network takes."""

import jax
import jax.numpy as jnp

from ppo_jax.envs import spaces


def preprocess(space: spaces.Space, obs: jax.Array, image: bool) -> jax.Array:
    """An observation as the float features a network takes.

    Discrete observations become one-hot, bytes are divided by 255, everything that is not an
    image is flattened.

    Args:
        space: observation space.
        obs: [..., *space.shape].
        image: keep [H, W, C] for a CNN.

    Returns:
        [..., F] or [..., H, W, C] float32.
    """
    if isinstance(space, spaces.Discrete):
        return jax.nn.one_hot(obs, space.n)
    rank = len(space.shape)
    scale = 255.0 if obs.dtype == jnp.uint8 else 1.0
    features = obs.astype(jnp.promote_types(obs.dtype, jnp.float32)) / scale
    return features if image else features.reshape(*features.shape[: features.ndim - rank], -1)
