"""Running mean and variance of observations and returns, as a value in the state.

The statistics are frozen while a rollout is collected and merged with its data afterwards, so
that the policy which learns sees exactly what the policy which acted saw.
"""

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import parallel, shapes
from ppo_jax.types import PyTree

PRIOR_COUNT = 1e-4


@struct.dataclass
class RunningMoments:
    """Mean and population variance of everything seen so far.

    Attributes:
        mean: [...] of one element.
        var: [...].
        count: [] number of elements, plus a prior of 1e-4 at mean 0 and variance 1.
    """

    mean: jax.Array
    var: jax.Array
    count: jax.Array


def init(shape: tuple[int, ...]) -> RunningMoments:
    """Statistics before any data: mean 0, variance 1.

    Args:
        shape: of one element, without batch dimensions.

    Returns:
        RunningMoments.
    """
    return RunningMoments(jnp.zeros(shape), jnp.ones(shape), jnp.asarray(PRIOR_COUNT, float))


def update(
    moments: RunningMoments, batch: jax.Array, weight: jax.Array | None = None
) -> RunningMoments:
    """Merge a batch into the statistics: all parts of it, where it has several.

    With n, μ, σ² so far and m, μ', σ'² of the batch, Δ = μ' − μ:
    μ ← μ + Δ m / (n+m)
    σ² ← (n σ² + m σ'² + Δ² n m / (n+m)) / (n+m)

    Args:
        moments: statistics of elements [...].
        batch: [B..., ...] any number of leading batch dimensions.
        weight: [B...] or None for all ones.

    Returns:
        RunningMoments.

    Raises:
        ValueError: a batch of other elements, or a weight of another shape than its dimensions.

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
    """Centre, scale and clip.

    clip((x − μ) / √(σ² + 1e-8), ±clip)

    Args:
        moments: statistics of elements [...].
        x: [B..., ...].
        clip: bound of the result, in deviations.

    Returns:
        [B..., ...].

    Raises:
        ValueError: x does not consist of such elements.

    Source: Andrychowicz et al. 2021, C64-C65; Stable-Baselines3 VecNormalize.
    """
    shapes.leading("normalize", "x", x, moments.mean.shape)
    return jnp.clip((x - moments.mean) * jax.lax.rsqrt(moments.var + 1e-8), -clip, clip)


def scale(moments: RunningMoments, reward: jax.Array, clip: float = 10.0) -> jax.Array:
    """Divide by the deviation alone: a reward keeps its sign and zero stays zero.

    clip(r / √(σ² + 1e-8), ±clip)

    Args:
        moments: statistics of discounted returns, element shape ().
        reward: [...].
        clip: bound of the result.

    Returns:
        [...].

    Raises:
        ValueError: the reward does not consist of such elements.

    Source: Engstrom et al. 2020, Implementation Matters in Deep RL, algorithm 1.
    """
    shapes.leading("scale", "reward", reward, moments.mean.shape)
    return jnp.clip(reward * jax.lax.rsqrt(moments.var + 1e-8), -clip, clip)


def init_tree(example: PyTree) -> PyTree:
    """Statistics for every float leaf of an observation; () for the others, which pass unchanged.

    Args:
        example: one observation, or its shapes, without batch dimensions.
    """
    return jax.tree.map(
        lambda x: init(x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else (), example
    )


def update_tree(moments: PyTree, batch: PyTree, weight: jax.Array | None = None) -> PyTree:
    """`update` for every leaf that has statistics."""
    return jax.tree.map(
        lambda x, m: update(m, x, weight) if isinstance(m, RunningMoments) else (), batch, moments
    )


def normalize_tree(moments: PyTree, x: PyTree) -> PyTree:
    """`normalize` for every leaf that has statistics."""
    return jax.tree.map(
        lambda leaf, m: normalize(m, leaf) if isinstance(m, RunningMoments) else leaf, x, moments
    )
