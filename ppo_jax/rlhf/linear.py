"""Products with weights whose backward pass is as fast as the forward pass."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x W, with ∂W = xᵀ g and ∂x = g Wᵀ.

    The same gradients as autodiff's, which asks for ∂W as (gᵀ x)ᵀ: for that XLA writes g transposed
    into memory first. On two CPU cores all gradients of a decoder take 1.35 times as long so (64
    wide), or 1.27 times (GPT-2). There is no forward-mode derivative.

    Args:
        x: [..., D].
        kernel: [D, F] of the same dtype.

    Returns:
        [..., F].
    """
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))
    return g @ kernel.T, jax.lax.dot_general(x, g, ((rows, rows), ((), ())))


product.defvjp(_forward, _backward)


class Dense(nn.Module):
    """x W + b, by `product`; parameters as those of linen's Dense.

    Attributes:
        features: F.
        use_bias: whether there is b.
        dtype: of the product.
        kernel_init: of W; b is 0.
    """

    features: int
    use_bias: bool
    dtype: jnp.dtype
    kernel_init: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., F]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = product(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias.astype(self.dtype)
