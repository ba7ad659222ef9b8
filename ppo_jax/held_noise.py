"""Noise that a rollout keeps for several steps, as generalised state-dependent exploration needs.

The noise is a part of the rollout's state, so that it continues over rollouts and checkpoints. A
distribution that keeps its noise has an attribute `noise_steps`, and its Policy has `init_noise`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax.types import PyTree


@struct.dataclass
class HeldNoise:
    """The noise of the current steps of N environments.

    Attributes:
        value: [N, ...] noise, as `sample_from` of the distribution takes it.
        age: [N] number of steps for which it has been used, modulo the number of steps for which it
            is kept; new noise is drawn at 0. All elements are equal.
    """

    value: jax.Array
    age: jax.Array


def init(noise: PyTree) -> PyTree:
    """The noise before the first step, which draws it.

    Args:
        noise: [N, ...] array of the noise's shape, or () if each step draws its own noise.

    Returns:
        HeldNoise, or ().
    """
    if not jax.tree.leaves(noise):
        return ()
    return HeldNoise(noise, jnp.zeros(noise.shape[0], jnp.int32))


def for_steps(key: jax.Array, dist: Any, held: PyTree, num_steps: int) -> jax.Array:
    """The random numbers of T steps: their noise, or a key for each step if noise is kept.

    Args:
        key: PRNG key.
        dist: distribution of one step, of which only the shapes are used.
        held: HeldNoise, or ().
        num_steps: number T of steps.
    """
    # One large draw of all noise is much faster than T small ones inside the loop.
    return dist.noise(key, (num_steps,)) if held == () else jax.random.split(key, num_steps)


def of_step(dist: Any, held: PyTree, given: jax.Array) -> tuple[jax.Array, PyTree]:
    """The noise of one step, and the kept noise after it.

    Args:
        dist: distribution of this step.
        held: HeldNoise, or ().
        given: element of `for_steps`.
    """
    if held == ():
        return given, held
    due = held.age[0] == 0
    value = jax.lax.cond(due, lambda: dist.noise(given), lambda: held.value)
    return value, HeldNoise(value, (held.age + 1) % dist.noise_steps)
