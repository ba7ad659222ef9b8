"""Convolutions over images, in front of the fully connected layers."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ppo_jax.networks.features import Features
from ppo_jax.networks.layers import ACTIVATIONS, HIDDEN_GAIN, computed_in, orthogonal


class Stage(NamedTuple):
    """A convolution with stride 1, max pooling by 2, and two residual blocks, of that width.

    Attributes:
        features: number of channels.
    """

    features: int


# (features, kernel, stride) of one convolution without padding, or a stage of residual blocks.
ConvLayer = tuple[int, int, int] | Stage
# The convolutions before the first fully connected layer.
CONVOLUTIONS: dict[str, tuple[ConvLayer, ...]] = {
    "mlp": (),
    "minatar": ((16, 3, 1),),
    "small": ((16, 8, 4), (32, 4, 2)),
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
    "impala": (Stage(16), Stage(32), Stage(32)),
}


def unread_pixels(network: str, shape: Sequence[int]) -> str | None:
    """A description of a strip at the end of the images that no convolution reads, if it is wide.

    A convolution without padding has ⌊(n − k) / s⌋ + 1 outputs along a side of n pixels, and reads
    (outputs − 1) s + k of them: "small" reads 36 of 42 pixels, "nature" all of 84. Strips narrower
    than a twentieth of the side are not mentioned.

    Args:
        network: name in CONVOLUTIONS.
        shape: shape [H, W, C] of the images, which are large enough for the network.
    """
    layers = CONVOLUTIONS[network]
    for size, strip in zip(shape[:2], ("rows", "columns"), strict=True):
        if 20 * (size - pixels_read(size, layers)) > size:
            less = pixels_read(size, layers)
            more = next(n for n in itertools.count(size) if pixels_read(n, layers) == n)
            return (
                f"network {network!r} does not read the last {size - less} of the {size} {strip} "
                f"of an image; it reads all {strip} of images with {less} or {more}"
            )
    return None


def pixels_read(size: int, layers: Sequence[ConvLayer]) -> int:
    """The number of pixels that convolutions read along a side of an image.

    Args:
        size: number of pixels of the side.
        layers: layers as in CONVOLUTIONS; residual stages are padded, and read all pixels.
    """
    shapes = [layer for layer in layers if not isinstance(layer, Stage)]
    if len(shapes) < len(layers):
        return size
    outputs = size
    for _, kernel, stride in shapes:
        outputs = (outputs - kernel) // stride + 1
    for _, kernel, stride in reversed(shapes):
        outputs = (outputs - 1) * stride + kernel
    return outputs


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


class ResidualStage(nn.Module):
    """A stage of the IMPALA network: [B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉, F].

    y = maxpool₂(conv(x)),   then twice   y ← y + conv(φ(conv(φ(y)))),   with 3×3 convolutions

    Attributes:
        features: number F of channels.
        activation: name in ACTIVATIONS.

    Source: Espeholt et al. 2018, IMPALA, figure 3 (right).
    """

    features: int
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]

        def conv(x: jax.Array) -> jax.Array:
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            return Conv(self.features, 3)(x)

        x = nn.max_pool(conv(x), (3, 3), (2, 2), padding="SAME")
        for _ in range(2):
            x = x + conv(act(conv(act(x))))
        return x


class CNN(nn.Module):
    """Convolutions over an image [..., H, W, C], flattened to [..., F].

    After residual stages the image is averaged over its pixels rather than flattened (global
    average pooling), which keeps the first fully connected layer small. Other features of the
    observation (`features.Features`) are appended to the result.

    Attributes:
        layers: (features, kernel, stride) of each convolution, or residual stages.
        activation: name in ACTIVATIONS.
        dtype: name in DTYPES.

    Source: Mnih et al. 2015; residual stages with global average pooling are those of Trumpp et
    al. 2025, Impoola: The Power of Average Pooling for Image-Based Deep RL, section 4.
    """

    layers: Sequence[ConvLayer]
    activation: str = "relu"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array | Features) -> jax.Array:
        x, rest = (x.image, [x.rest]) if isinstance(x, Features) else (x, [])
        leading, given = x.shape[:-3], jnp.promote_types(x.dtype, jnp.float32)
        x = x.reshape(-1, *x.shape[-3:]).astype(computed_in(self.dtype) or given)
        for layer in self.layers:
            if isinstance(layer, Stage):
                x = ResidualStage(layer.features, self.activation)(x)
            else:
                x = ACTIVATIONS[self.activation](Conv(*layer)(x))
        if isinstance(self.layers[-1], Stage):
            x = ACTIVATIONS[self.activation](x).mean(axis=(-3, -2))
        x = x.reshape(*leading, -1).astype(given)
        return jnp.concatenate([x, *rest], axis=-1) if rest else x
