"""The variant of Adam of TensorFlow 1, which the first RLHF experiments used."""

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
