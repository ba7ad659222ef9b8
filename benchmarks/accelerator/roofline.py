"""How near a program is to what its device can do.

The work of a program is what its mathematics needs at least: the products of the networks, and
every number of a batch, a parameter or an optimiser state moved once. The compiler's own count
is of no use here: it counts the body of a loop once.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from benchmarks.throughput.breakdown import timer
from ppo_jax.config import TrainConfig
from ppo_jax.train import build
from ppo_jax.types import PyTree

# Reads gradient, parameters and two moments of Adam, writes the last three.
ADAM_PASSES = 7


class Work(NamedTuple):
    """The least work of one environment step, its share of the update included.

    Attributes:
        flops: of the networks, one multiplication and one addition each.
        bytes: moved to or from the device's memory.
    """

    flops: float
    bytes: float


def ceilings(smoke: bool) -> dict[str, float]:
    """The device's own rates by the same compiler, see `tasks.Context`."""
    size = 256 if smoke else 8192
    length = 2**18 if smoke else 2**28
    seconds = 0.05 if smoke else 0.5

    def product(dtype: Any, precision: str | None) -> float:
        # Random numbers, for chips are faster on equal ones; its eigenvalues lie in the unit
        # circle, so that products with it neither grow nor vanish.
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype) / math.sqrt(size)
        measure = timer(lambda x: jnp.matmul(x, matrix, precision=precision), matrix, seconds)
        return 2 * size**3 / measure() / 1e12

    copy = timer(lambda x: x + 1, jnp.zeros(length, jnp.float32), seconds)
    return {
        "default": product(jnp.float32, None),
        "highest": product(jnp.float32, "highest"),
        "bfloat16": product(jnp.bfloat16, None),
        "copy": 2 * 4 * length / copy() / 1e9,
    }


def work_of(config: TrainConfig) -> Work:
    """The least work of one environment step of a control run with PPO.

    An action needs the network once, and each epoch three times more: forward, and twice as much
    backward. Rows of the batch are written once and read in every epoch.
    """
    program = build(config)
    state = jax.eval_shape(program.init, jax.random.key(0))
    params, start = state.learner.params, jnp.zeros(config.num_envs, bool)
    arguments = (params, state.rollout.core, state.rollout.obs, start)
    acting = flops_of(program.policy.act, *arguments) / config.num_envs
    row = sum(bytes_of(x) for x in jax.tree.leaves(state.rollout.obs)) / config.num_envs
    # Action, log-probability, value, next value, reward, advantage, target, weight, and flags.
    row += 8 * 4 + 2
    epochs, rows = config.hyper.epochs, config.num_envs * config.num_steps
    steps = epochs * config.hyper.minibatches
    size = sum(bytes_of(x) for x in jax.tree.leaves(params))
    moved = row * (1 + epochs) + ADAM_PASSES * size * steps / rows
    return Work(flops=acting * (1 + 3 * epochs), bytes=moved)


def bytes_of(shape: Any) -> int:
    """Of an array or its shape."""
    return shape.size * shape.dtype.itemsize


def flops_of(function: Callable[..., PyTree], *arguments: PyTree) -> float:
    """Operations of the matrix products and convolutions in a function.

    They are counted in its jaxpr: compilers count the body of a loop once, and JAX's count before
    compilation is not there on every platform.
    """
    return _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        parameters, result = equation.params, equation.outvars[0].aval
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * result.size * math.prod(shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            out_features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * result.size * kernel.size / out_features
        times = parameters.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(_products(inner) for inner in jaxprs_in_params(parameters))
    return total


def shares(
    work: Work, rate: float, ceilings: dict[str, float], precision: str = "default"
) -> dict[str, float]:
    """The columns of a row that say how much of the device is used.

    Args:
        work: of one step.
        rate: steps per second.
        ceilings: of the device; without them the shares are left out.
        precision: of the products: the ceiling that they are compared with.
    """
    found = {
        "tflops_per_second": significant(work.flops * rate / 1e12),
        "gb_per_second": significant(work.bytes * rate / 1e9),
    }
    if ceilings:
        found["of_matmul"] = significant(work.flops * rate / 1e12 / ceilings[precision])
        found["of_bandwidth"] = significant(work.bytes * rate / 1e9 / ceilings["copy"])
    return found


def significant(x: float, digits: int = 3) -> float:
    """Rounded to so many significant digits."""
    return float(f"{x:.{digits}g}")
