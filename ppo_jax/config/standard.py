"""Options that several records have: those of the optimiser, and the precision of matrix products.

The names that an option of the networks may have are here as well, so that the command line can
list them without importing the networks; `tests/test_config.py` compares them with the networks.
"""

import math
from typing import Any

from ppo_jax.config.options import option

# Distributions of continuous actions.
ACTION_DISTRIBUTIONS = ("gaussian", "state_gaussian", "beta", "gsde")
ACTIVATIONS = ("tanh", "relu", "silu", "gelu")
CONVOLUTIONS = ("mlp", "minatar", "small", "nature", "impala")
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adam", "muon")
FRAME_MIXES = ("none", "differences")
MEMORIES = ("none", "gru", "lstm", "mingru", "gtrxl")
NORMS = ("none", "layer", "rms")
VALUE_HEADS = ("scalar", "two_hot", "hl_gauss", "quantile")
PRECISIONS = ("default", "high", "highest")


def learning_rate(default: float, *, adaptive: bool = False) -> Any:
    """The option of Adam's step size.

    Args:
        default: the learning rate of the first update. A plain number decays linearly to 0 over
            `anneal_timesteps`.
        adaptive: whether the algorithm reports approx_kl, which an adaptive schedule follows.
    """
    doc = "Adam's learning rate at the first update, or a schedule"
    return option(default, doc, low=0, open_low=True, adaptive=adaptive, may_vanish=True)


def anneal_updates() -> Any:
    """The horizon of the learning rate of a language model, which is saved: a run that is resumed
    with more updates continues with the learning rate that it ended with."""
    return option(
        None,
        "number of updates over which the learning rate decays; None: the number of updates that "
        "the run starts with, also if it is resumed with more",
        low=1,
    )


def anneal_timesteps() -> Any:
    """The option of the number of environment steps over which the learning rate decays."""
    doc = (
        "number of environment steps over which the learning rate decays linearly to 0; "
        "inf: constant learning rate; None: the whole run"
    )
    return option(None, doc, low=0, high=math.inf, open_low=True)


def max_grad_norm(default: float) -> Any:
    """The option of the maximum gradient norm."""
    doc = "maximum norm of the gradient over all parameters; inf: no clipping"
    return option(default, doc, low=0, high=math.inf, open_low=True)


def optimizer() -> Any:
    """The option of the optimiser."""
    doc = "optimiser: adam, or muon for matrices and Adam for all other parameters"
    return option("adam", doc, choices=OPTIMIZERS)


def adam_eps() -> Any:
    """The option of Adam's epsilon."""
    return option(
        1e-5, "Adam's epsilon, added to the denominator of each step", low=0, open_low=True
    )


def adam_reset() -> Any:
    """The option that restarts Adam's bias correction at each rollout."""
    doc = (
        "restart Adam's bias correction at each rollout, whose gradients are those of a new "
        "objective; Adam's averages of the gradients are kept"
    )
    return option(False, doc)


def weight_decay() -> Any:
    """The option of the decoupled weight decay."""
    doc = (
        "decoupled weight decay: each step subtracts this number times the learning rate times the "
        "weights, but not from biases and other vectors; None: no weight decay"
    )
    return option(None, doc, low=0)


def matmul_precision() -> Any:
    """The option of the precision of float32 matrix products and convolutions."""
    doc = (
        "precision of float32 matrix products and convolutions; default: JAX's own setting, which "
        "on GPUs and TPUs is faster and less precise than float32; highest: full float32"
    )
    return option("default", doc, choices=PRECISIONS)
