"""Fully connected layers of the networks, and their initialisation."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}
# Normalisation of the outputs of a layer, before the activation.
NORMS = ("none", "layer", "rms")
# Types of activations between layers. Parameters, gradients and outputs of networks are float32.
DTYPES = ("float32", "bfloat16")
HIDDEN_GAIN = math.sqrt(2.0)


def orthogonal(gain: float) -> nn.initializers.Initializer:
    """Orthogonal initialisation that is safe under vmap.

    W = gain · Q, where the columns (or rows) of Q are orthonormal.

    On CPUs the matrices are factorised one at a time even under vmap, because the batched QR
    decomposition of jaxlib 0.10 can deadlock on machines with few cores. On other devices a loop
    over thousands of agents would be slow.

    Args:
        gain: value of all singular values of the matrix [fan_in..., fan_out].

    Source: Saxe et al. 2014, Exact Solutions to the Nonlinear Dynamics of Learning.
    """
    dense = nn.initializers.orthogonal(gain)

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        draw = lambda key: dense(key, shape, dtype)
        one_by_one = jax.custom_batching.sequential_vmap(draw)
        return jax.lax.platform_dependent(key, cpu=one_by_one, default=draw)

    return init


def computed_in(dtype: str) -> Any:
    """The type in which layers compute, for a name in DTYPES; None for the type of the input."""
    return None if dtype == "float32" else jnp.dtype(dtype)


def normalized(norm: str, x: jax.Array, dtype: Any = None) -> jax.Array:
    """The features [..., F] of each sample, normalised over F. Called inside a compact module.

    layer:  (x − μ) / √(σ² + 1e-6) · g + b        rms:  x / √(mean(x²) + 1e-6) · g

    Args:
        norm: name in NORMS; none returns x.
        x: [..., F] features.
        dtype: data type in which the result is computed; None for that of x.

    Source: Ba et al. 2016, Layer Normalization, eq. 3; Zhang & Sennrich 2019, Root Mean Square
    Layer Normalization, eq. 4.
    """
    if norm == "none":
        return x
    return {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[norm](dtype=dtype)(x)


class MLP(nn.Module):
    """Fully connected layers, each followed by the normalisation and the activation.

    Attributes:
        features: widths of the layers.
        activation: name in ACTIVATIONS.
        dtype: name in DTYPES.
        norm: name in NORMS.
    """

    features: Sequence[int]
    activation: str = "tanh"
    dtype: str = "float32"
    norm: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        given = jnp.promote_types(x.dtype, jnp.float32)
        for width in self.features:
            dense = nn.Dense(
                width, dtype=computed_in(self.dtype), kernel_init=orthogonal(HIDDEN_GAIN)
            )
            x = normalized(self.norm, dense(x), computed_in(self.dtype))
            x = ACTIVATIONS[self.activation](x)
        return x.astype(given)


class ResidualMLP(nn.Module):
    """A linear embedding, residual blocks with normalisation, and a normalisation of the result.

    x ← W x + b,   then for each block   x ← x + W₂ φ(W₁ N(x)),   and at the end   x ← N(x)

    N is the normalisation, φ the activation, and W₁ x has four times the width of x. The path from
    the input to the output is linear, so that the initial function is simple.

    Attributes:
        width: number of units of the residual path.
        blocks: number of residual blocks.
        activation: name in ACTIVATIONS.
        dtype: name in DTYPES.
        norm: name in NORMS except none.

    Source: Lee et al. 2024, SimBa: Simplicity Bias for Scaling Up Parameters in Deep RL, section 4
    (the normalisation of observations in the same section is the option normalize_obs).
    """

    width: int
    blocks: int
    activation: str = "relu"
    dtype: str = "float32"
    norm: str = "layer"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        given, inner = jnp.promote_types(x.dtype, jnp.float32), computed_in(self.dtype)

        def dense(width: int, gain: float) -> nn.Dense:
            return nn.Dense(width, dtype=inner, kernel_init=orthogonal(gain))

        x = dense(self.width, 1.0)(x)
        for _ in range(self.blocks):
            y = dense(4 * self.width, HIDDEN_GAIN)(normalized(self.norm, x, inner))
            x = x + dense(self.width, HIDDEN_GAIN)(ACTIVATIONS[self.activation](y))
        return normalized(self.norm, x, inner).astype(given)


class Layers(NamedTuple):
    """The fully connected layers of a network.

    Attributes:
        hidden: widths of the layers, or of the residual blocks, which must be equal.
        activation: name in ACTIVATIONS.
        dtype: name in DTYPES.
        norm: name in NORMS; residual blocks need a normalisation.
        residual: whether the layers are residual blocks.
    """

    hidden: tuple[int, ...]
    activation: str
    dtype: str
    norm: str
    residual: bool

    def module(self) -> nn.Module:
        """A module [..., F] -> [..., width of the last layer]."""
        if not self.residual:
            return MLP(self.hidden, self.activation, self.dtype, self.norm)
        width, blocks = self.hidden[0], len(self.hidden)
        return ResidualMLP(width, blocks, self.activation, self.dtype, self.norm)


def head(features: int, gain: float, name: str = "head") -> nn.Dense:
    """A linear output layer; the gain determines the scale of its initial outputs."""
    return nn.Dense(
        features, kernel_init=orthogonal(gain), name=name, dot_general=_dot_of_few_outputs
    )


def _dot_of_few_outputs(
    x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any
) -> jax.Array:
    """[..., F] @ [F, A] for small A, as a product with the transposed kernel.

    `dimensions` are always those of nn.Dense: the last of x and the first of the kernel.

    The gradient is then gᵀ x [A, F] rather than xᵀ g, for which a CPU first transposes x. The
    barrier prevents XLA from undoing this.
    """
    transposed = jax.lax.optimization_barrier(kernel.T)
    return jax.lax.dot_general(x, transposed, (((x.ndim - 1,), (1,)), ((), ())), **options)
