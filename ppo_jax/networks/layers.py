"""Layers of the networks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ppo_jax.networks.features import Features

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}
# Types of activations between layers. Parameters, gradients and outputs of networks are float32.
DTYPES = ("float32", "bfloat16")
HIDDEN_GAIN = math.sqrt(2.0)

# (features, kernel, stride) of the convolutions before the first fully connected layer.
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "mlp": (),
    "minatar": ((16, 3, 1),),
    "small": ((16, 8, 4), (32, 4, 2)),
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
}


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


class MLP(nn.Module):
    """Fully connected layers, each followed by the activation.

    Attributes:
        features: widths of the layers.
        activation: name in ACTIVATIONS.
        dtype: name in DTYPES.
    """

    features: Sequence[int]
    activation: str = "tanh"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        given = jnp.promote_types(x.dtype, jnp.float32)
        for width in self.features:
            dense = nn.Dense(
                width, dtype=computed_in(self.dtype), kernel_init=orthogonal(HIDDEN_GAIN)
            )
            x = ACTIVATIONS[self.activation](dense(x))
        return x.astype(given)


class Conv(nn.Module):
    """A convolution without padding, computed as one matrix product where that is faster.

    On CPUs the gradient of XLA's convolution is much slower inside a loop than outside
    (jax-ml/jax#12868), and the epochs of PPO are a loop. There, the image is split into patches:
    the stride is moved into channels, and the kernel becomes a set of shifted slices. Parameters
    and results are those of `nn.Conv(padding="VALID")`.

    Attributes:
        features: number of output channels.
        kernel: side length of the square kernel.
        stride: stride, which must divide the kernel size in the patch form.
    """

    features: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", orthogonal(HIDDEN_GAIN), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.float32)
        kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
        patches = jax.default_backend() == "cpu" and self.kernel % self.stride == 0
        return (conv_by_patches if patches else conv_by_xla)(x, kernel, self.stride) + bias


def conv_by_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """XLA's own convolution, [B, H, W, C] * [k, k, C, F] -> [B, H', W', F]."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=dimensions
    )


def conv_by_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same convolution as one matrix product over patches, which are gathered by slicing.

    For stride s, each s×s block of pixels becomes one pixel with s²C channels, on which the kernel
    has side length k/s and stride 1.
    """
    batch, height, width, channels = x.shape
    side, features = kernel.shape[0] // stride, kernel.shape[-1]
    rows, columns = ((n - kernel.shape[0]) // stride + 1 for n in (height, width))
    blocks = (rows + side - 1, columns + side - 1)

    x = x[:, : blocks[0] * stride, : blocks[1] * stride]
    x = x.reshape(batch, blocks[0], stride, blocks[1], stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, *blocks, stride * stride * channels)
    shifts = [x[:, i : i + rows, j : j + columns] for i in range(side) for j in range(side)]
    kernel = kernel.reshape(side, stride, side, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(-1, features)
    return jnp.concatenate(shifts, axis=-1) @ kernel


class CNN(nn.Module):
    """Convolutions over an image [..., H, W, C], flattened to [..., F].

    Other features of the observation (`features.Features`) are appended to the result.

    Attributes:
        layers: (features, kernel, stride) of each convolution.
        activation: name in ACTIVATIONS.
        dtype: name in DTYPES.
    """

    layers: Sequence[tuple[int, int, int]]
    activation: str = "relu"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array | Features) -> jax.Array:
        x, rest = (x.image, [x.rest]) if isinstance(x, Features) else (x, [])
        leading, given = x.shape[:-3], jnp.promote_types(x.dtype, jnp.float32)
        x = x.reshape(-1, *x.shape[-3:]).astype(computed_in(self.dtype) or given)
        for features, kernel, stride in self.layers:
            x = ACTIVATIONS[self.activation](Conv(features, kernel, stride)(x))
        x = x.reshape(*leading, -1).astype(given)
        return jnp.concatenate([x, *rest], axis=-1) if rest else x


def head(features: int, gain: float) -> nn.Dense:
    """A linear output layer; the gain determines the scale of its initial outputs."""
    return nn.Dense(
        features, kernel_init=orthogonal(gain), name="head", dot_general=_dot_of_few_outputs
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
