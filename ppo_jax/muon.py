"""Muon: steps along orthogonalised momentum for matrices, and Adam for all other parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# Decay rate of the momentum, and the root mean square of the elements of a step, in units of the
# learning rate: that of a typical step of Adam.
MOMENTUM, RMS = 0.95, 0.2


def scale_by_muon(
    b1: float = 0.9, b2: float = 0.999, eps: jax.Array | float = 1e-8
) -> optax.GradientTransformation:
    """The direction of Muon for each matrix, and that of Adam for each other parameter.

    M ← β M + (1 − β) G,   O = U Vᵀ,  where β M̂ + (1 − β) Ĝ = U Σ Vᵀ,
    direction = 0.2 √max(rows, columns) · O

    M̂ and Ĝ are corrected for their bias. O is computed by five Newton-Schulz iterations, which
    bring the singular values near 1 (between about 0.7 and 1.2) without a decomposition. The factor
    gives the steps the size of Adam's, so that both may use one learning rate. Convolutions have
    more than two axes and are left to Adam.

    Args:
        b1: decay rate β₁ of Adam's first moment.
        b2: decay rate β₂ of Adam's second moment.
        eps: ε of Adam, also added to the norm by which Newton-Schulz divides a matrix.

    Returns:
        An optax transformation, whose `update` needs the parameters.

    Source: Jordan et al. 2024, Muon: An Optimizer for Hidden Layers in Neural Networks; the factor
    is that of Liu et al. 2025, Muon is Scalable for LLM Training, eq. 4.
    """
    muon = optax.contrib.muon(
        1.0, beta=MOMENTUM, eps=eps, adam_b1=b1, adam_b2=b2, consistent_rms=RMS
    )

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        step, state = muon.update(grads, state, params)
        return jax.tree.map(jnp.negative, step), state

    return optax.GradientTransformation(muon.init, update)
