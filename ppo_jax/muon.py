"""Muon: steps along orthogonalised momentum for matrices, and Adam for all other parameters."""

import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

# Decay rate of the momentum, and the root mean square of the elements of a step, in units of the
# learning rate: that of a typical step of Adam.
MOMENTUM, RMS = 0.95, 0.2


# Parameters with two axes that do not multiply inputs: log σ of gSDE, and biases of attention.
VECTORS = ("log_std", "content", "position")


def is_matrix(path: tuple[Any, ...], x: jax.Array) -> bool:
    """Whether a parameter is a matrix or a filter, as opposed to biases, scales and log σ.

    Args:
        path: keys of the parameter in the pytree of all parameters.
        x: the parameter.
    """
    name = getattr(path[-1], "key", None) if path else None
    return x.ndim > 1 and name not in VECTORS


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
        eps: ε of Adam.

    Returns:
        An optax transformation whose state has a part for matrices and one for Adam.

    Source: Jordan et al. 2024, Muon: An Optimizer for Hidden Layers in Neural Networks; the factor
    is that of Liu et al. 2025, Muon is Scalable for LLM Training, eq. 4.
    """
    of_matrices = lambda tree: jax.tree.map(lambda _: MuonDimensionNumbers(), tree)
    muon = optax.contrib.scale_by_muon(beta=MOMENTUM, weight_dimension_numbers=of_matrices)

    def sized(directions: Any, params: Any) -> Any:
        return jax.tree.map(lambda x: RMS * math.sqrt(max(x.shape)) * x, directions)

    def kind(path: tuple[Any, ...], x: jax.Array) -> str:
        return "matrix" if x.ndim == 2 and is_matrix(path, x) else "other"

    def kinds(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(kind, params)

    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    return optax.partition(
        {"matrix": optax.chain(muon, optax.stateless(sized)), "other": adam}, kinds
    )
