"""Variants of Adam: that of TensorFlow 1, which the first RLHF experiments used, and AdamW."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def scale_by_tensorflow_adam(
    b1: float = 0.9, b2: float = 0.999, eps: jax.Array | float = 1e-8
) -> optax.GradientTransformation:
    """Adam that adds ε before it corrects the bias of the second moment.

    m / (√v + ε) · √(1 − β₂ᵗ) / (1 − β₁ᵗ),   that is Adam with ε / √(1 − β₂ᵗ) in place of ε

    With β₂ = 0.999 the effective ε of the first step is 31.6 times as large as in optax, so that
    gradients of about the size of ε change a parameter far less.

    Args:
        b1: β₁, the decay rate of the first moment.
        b2: β₂, the decay rate of the second moment.
        eps: ε, the constant that is added to the denominator.

    Returns:
        An optax transformation with the state of optax.scale_by_adam.

    Source: Kingma & Ba 2015, section 2, last paragraph (ε̂), as in TensorFlow 1; Huang et al. 2023,
    The N Implementation Details of RLHF with PPO.
    """
    plain = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _, state = plain.update(grads, state, params)
        time = state.count.astype(jnp.float32)
        correction = jnp.sqrt(1.0 - b2**time) / (1.0 - b1**time)
        direction = jax.tree.map(
            lambda m, v: correction * m / (jnp.sqrt(v) + eps), state.mu, state.nu
        )
        return direction, state

    return optax.GradientTransformation(plain.init, update)


def with_weight_decay(
    weight_decay: jax.Array | float,
) -> Callable[..., optax.GradientTransformation]:
    """Adam with decoupled weight decay of all matrices (AdamW).

    m̂ / (√v̂ + ε) + λ θ;   λ = 0 for vectors, the biases and the scales of normalisation layers

    Args:
        weight_decay: λ, which the optimiser multiplies by the learning rate.

    Returns:
        A function with the arguments and the state of optax.scale_by_adam.

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2.
    """

    def make(**options: Any) -> optax.GradientTransformation:
        plain = optax.scale_by_adam(**options)
        return optax.GradientTransformation(plain.init, functools.partial(update, plain))

    def update(plain: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        direction, state = plain.update(grads, state, params)
        decayed = lambda d, x: d + (weight_decay * x).astype(d.dtype) if x.ndim > 1 else d
        return jax.tree.map(decayed, direction, params), state

    return make
