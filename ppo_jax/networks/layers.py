"""The layers that networks are made of."""

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
# Of activations between layers. Parameters, gradients and what the layers return stay float32.
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
    """Orthogonal initialisation that is safe to vmap.

    W = gain · Q, the columns (or rows) of Q orthonormal.

    On CPUs one matrix is factorised at a time even under vmap: batched QR of jaxlib 0.10 can
    deadlock on machines with few cores. Elsewhere a loop over thousands of agents would be slow.

    Args:
        gain: all singular values of the matrix [fan_in..., fan_out].

    Source: Saxe et al. 2014, Exact Solutions to the Nonlinear Dynamics of Learning.
    """
    dense = nn.initializers.orthogonal(gain)

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
        draw = lambda key: dense(key, shape, dtype)
        one_by_one = jax.custom_batching.sequential_vmap(draw)
        return jax.lax.platform_dependent(key, cpu=one_by_one, default=draw)

    return init


def computed_in(dtype: str) -> Any:
    """The type that layers compute in, for a name in DTYPES; None: that of what they are given."""
    return None if dtype == "float32" else jnp.dtype(dtype)


class MLP(nn.Module):
    """Fully connected layers, each followed by the activation.

    Attributes:
        features: width of each layer.
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
    """A convolution without padding, as patches and one matrix product where that is faster.

    On CPU the gradient of XLA's convolution inside a loop is 9 to 18 times slower than outside
    (jax-ml/jax#12868), and PPO's epochs are a loop; there the image is cut into patches: the
    stride moves into channels, the kernel becomes shifted slices. Parameters and results are
    those of `nn.Conv(padding="VALID")`.

    Attributes:
        features: output channels.
        kernel: side of the square kernel.
        stride: must divide the kernel in the patch form.
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
    """[B, H, W, C] * [k, k, C, F] -> [B, H', W', F], XLA's own convolution."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=dimensions
    )


def conv_by_patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same as one matrix product over patches, gathered by slicing alone.

    With stride s each s×s block of pixels becomes one pixel of s²C channels, on which the kernel
    has side k/s and stride 1.
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

    What came with the image (`features.Features`) is appended to that.

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
    """A linear layer whose gain sets how far from uniform, or from zero, it starts."""
    return nn.Dense(
        features, kernel_init=orthogonal(gain), name="head", dot_general=_dot_of_few_outputs
    )


def _dot_of_few_outputs(
    x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any
) -> jax.Array:
    """[..., F] @ [F, A] for small A, as a product with the transposed kernel.

    `dimensions` are always nn.Dense's: the last of x with the first of the kernel.

    Its gradient then is gᵀ x [A, F] and not xᵀ g, in which a CPU first rearranges all of x: five
    times faster on 2,048 rows, and a whole update 9 %. The barrier keeps XLA from undoing it.
    """
    transposed = jax.lax.optimization_barrier(kernel.T)
    return jax.lax.dot_general(x, transposed, (((x.ndim - 1,), (1,)), ((), ())), **options)
