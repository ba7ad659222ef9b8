"""PPO-EWMA: the clip range around a lagged policy instead of the policy that acted.

The lagged, or proximal, policy has an average of the parameters before all earlier gradient steps,
in which old parameters have exponentially decaying weights. How far a policy may move then no
longer depends on the number of samples per update.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ppo_jax import losses
from ppo_jax.types import Batch, Params


@struct.dataclass
class Average:
    """A weighted average of the parameters before each gradient step.

    Attributes:
        params: average parameters, θ_prox.
        total: [] sum of the weights; 0 before the first gradient step.
    """

    params: Params
    total: jax.Array


def start(params: Params) -> Average:
    """The average before the first gradient step, whose weight is 0.

    Args:
        params: parameters of the policy, for their shapes.
    """
    copies = jax.tree.map(
        jnp.array, params
    )  # the buffers of a state are donated, each of them once
    return Average(copies, jnp.zeros((), jnp.float32))


def advance(average: Average, params: Params, decay: jax.Array | float) -> Average:
    """The average that includes the parameters before the next gradient step.

    w ← β w + 1,   θ_prox ← θ_prox + (θ − θ_prox) / w,   that is θ_prox = Σ β^{k−i} θ_i / Σ β^{k−i}

    Args:
        average: average over the earlier steps.
        params: parameters θ before the next step.
        decay: decay rate β of the weights, from 0 (θ_prox = θ) to 1 (the mean of all parameters).

    Returns:
        Average with the weight w.

    Source: Hilton et al. 2022, Batch Size-Invariance for Policy Optimization, section 3.2, with the
    correction of the initial bias of their code.
    """
    total = decay * average.total + 1.0
    mixed = jax.tree.map(
        lambda mean, x: mean + (x - mean) / total.astype(x.dtype), average.params, params
    )
    return Average(mixed, total)


def proximal_log_prob(policy: Any, average: Average, rows: Batch) -> jax.Array:
    """[M] log π_prox(a|s) of the actions taken.

    Args:
        policy: policy whose `apply(params, obs)` returns (distribution, value).
        average: average of the parameters.
        rows: Batch with leaves [M, ...].
    """
    return losses.predict(policy, average.params, losses.mask(rows)).log_prob


def decoupled(
    advantage: jax.Array, log_prob: jax.Array, proximal_log_prob: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The two arguments of an objective whose clip range is around π_prox.

    L = −min(ρ' Â', clip(ρ', 1−ε, 1+ε) Â'),   ρ' = π_θ / π_prox,   Â' = Â π_prox / π_old

    ρ' Â' = Â π_θ / π_old is the surrogate of the policy that acted: data of any policy can be used.

    Args:
        advantage: [...] advantages Â.
        log_prob: [...] log π_old(a|s) of the policy that acted.
        proximal_log_prob: [...] log π_prox(a|s).

    Returns:
        (Â', log π_prox), which replace (Â, log π_old).

    Source: Hilton et al. 2022, eq. 2.
    """
    return advantage * jnp.exp(proximal_log_prob - log_prob), proximal_log_prob
