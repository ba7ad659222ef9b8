"""Running statistics (mean and variance) of observations and returns, as part of the state.

The statistics stay constant while a rollout is collected and are updated with its data afterwards,
so that the learner and the behaviour policy use identically normalised observations.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import parallel, shapes
from ppo_jax.types import PyTree

PRIOR_COUNT = 1e-4


@struct.dataclass
class RunningMoments:
    """Running mean and population variance of all data so far.

    Attributes:
        mean: [...] mean of the elements.
        var: [...] variance of the elements.
        count: [] number of elements, plus the weight 1e-4 of a prior with mean 0 and variance 1.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


def init(shape: tuple[int, ...]) -> RunningMoments:
    """Running statistics before any data: mean 0, variance 1.

    Args:
        shape: shape of one element, without batch dimensions.

    Returns:
        RunningMoments of that shape.
    """
    return RunningMoments(jnp.zeros(shape), jnp.ones(shape), jnp.asarray(PRIOR_COUNT, float))


def update(
    moments: RunningMoments, batch: jax.Array, weight: jax.Array | None = None
) -> RunningMoments:
    """Update the running statistics with a batch, over all devices if there are several.

    With n, μ, σ² of the data so far, m, μ', σ'² of the batch, and Δ = μ' − μ:
    μ ← μ + Δ m / (n+m)
    σ² ← (n σ² + m σ'² + Δ² n m / (n+m)) / (n+m)

    Args:
        moments: running statistics of elements of shape [...].
        batch: [B..., ...] elements with any number of leading batch dimensions.
        weight: [B...] weights, or None if all are 1.

    Returns:
        RunningMoments that include the batch.

    Raises:
        ValueError: if the batch has elements of another shape, or the weight has another shape
            than the batch dimensions.

    Source: Chan, Golub & LeVeque 1979, Updating Formulae and a Pairwise Algorithm, eq. 2.1.
    """
    element = moments.mean.shape
    rows = shapes.leading("update", "batch", batch, element)
    shapes.exact("update", rows, "the batch", weight=weight)
    batch = batch.reshape(-1, *element).astype(moments.mean.dtype)
    weight = jnp.ones(batch.shape[0]) if weight is None else weight.reshape(-1)
    column = weight.reshape(-1, *(1,) * len(element))
    batch = jnp.where(column > 0, batch, 0.0)
    count, mean = parallel.sum((jnp.sum(weight), jnp.sum(column * batch, axis=0)))
    safe_count = jnp.where(count > 0, count, 1.0)
    mean = mean / safe_count
    var = parallel.sum(jnp.sum(column * jnp.square(batch - mean), axis=0)) / safe_count

    total = moments.count + count
    delta = mean - moments.mean
    spread = moments.var * moments.count + var * count
    spread += jnp.square(delta) * moments.count * count / total
    return RunningMoments(moments.mean + delta * count / total, spread / total, total)


def normalize(moments: RunningMoments, x: jax.Array, clip: float = 10.0) -> jax.Array:
    """Subtract the running mean, divide by the running standard deviation and clip.

    clip((x − μ) / √(σ² + 1e-8), ±clip)

    Args:
        moments: running statistics of elements of shape [...].
        x: [B..., ...] elements with any number of leading batch dimensions.
        clip: largest absolute value of the result, in standard deviations.

    Returns:
        [B..., ...] normalised elements.

    Raises:
        ValueError: if x has elements of another shape.

    Source: Andrychowicz et al. 2021, C64-C65; Stable-Baselines3 VecNormalize.
    """
    shapes.leading("normalize", "x", x, moments.mean.shape)
    return jnp.clip((x - moments.mean) * jax.lax.rsqrt(moments.var + 1e-8), -clip, clip)


def scale(moments: RunningMoments, reward: jax.Array, clip: float = 10.0) -> jax.Array:
    """Divide rewards by the running standard deviation of returns, without subtracting a mean.

    clip(r / √(σ² + 1e-8), ±clip)

    A reward keeps its sign, and a reward of zero stays zero.

    Args:
        moments: running statistics of discounted returns, with elements of shape ().
        reward: [...] rewards r.
        clip: largest absolute value of the result.

    Returns:
        [...] scaled rewards.

    Raises:
        ValueError: if the rewards have elements of another shape.

    Source: Engstrom et al. 2020, Implementation Matters in Deep RL, algorithm 1.
    """
    shapes.leading("scale", "reward", reward, moments.mean.shape)
    return jnp.clip(reward * jax.lax.rsqrt(moments.var + 1e-8), -clip, clip)


def init_tree(example: PyTree) -> PyTree:
    """Running statistics for every float leaf of an observation.

    Leaves of other types get () in place of statistics and are not normalised.

    Args:
        example: one observation, or its shapes, without batch dimensions.
    """
    return jax.tree.map(
        lambda x: init(x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else (), example
    )


def update_tree(moments: PyTree, batch: PyTree, weight: jax.Array | None = None) -> PyTree:
    """Apply `update` to every leaf that has running statistics."""
    return jax.tree.map(
        lambda x, m: update(m, x, weight) if isinstance(m, RunningMoments) else (), batch, moments
    )


def normalize_tree(moments: PyTree, x: PyTree) -> PyTree:
    """Apply `normalize` to every leaf that has running statistics."""
    return jax.tree.map(
        lambda leaf, m: normalize(m, leaf) if isinstance(m, RunningMoments) else leaf, x, moments
    )
