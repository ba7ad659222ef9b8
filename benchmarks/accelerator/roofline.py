"""The fraction of a device's peak rates that a program uses.

The work of a program is the minimum that its mathematics requires: the products of the networks,
and one memory access for each number of a batch, a parameter or an optimiser state. The compiler's
own count cannot be used, because it counts the body of a loop only once.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from benchmarks.throughput.breakdown import timer
from ppo_jax.config import TrainConfig
from ppo_jax.train import build
from ppo_jax.types import PyTree

# Memory accesses of Adam per parameter: it reads gradient, parameter, first and second moment, and
# writes the last three.
ADAM_PASSES = 7


class Work(NamedTuple):
    """The minimum work of one environment step, including its part of the update.

    Attributes:
        flops: floating-point operations of the networks' products, where an addition and a
            multiplication are two operations.
        bytes: bytes read from and written to the device's memory.
    """

    flops: float
    bytes: float


def ceilings(smoke: bool) -> dict[str, float]:
    """The peak rates of the device, measured with the same compiler; see `tasks.Context`."""
    size = 256 if smoke else 8192
    length = 2**18 if smoke else 2**28
    seconds = 0.05 if smoke else 0.5

    def rate(work: float, measure: Callable[[], float]) -> float:
        return work / statistics.median(measure() for _ in range(3))

    def product(dtype: Any, precision: str | None) -> float:
        # Random numbers, because chips multiply equal numbers faster. The eigenvalues of the matrix
        # are inside the unit circle, so that repeated products neither grow nor vanish.
        matrix = jax.random.normal(jax.random.key(0), (size, size), dtype) / math.sqrt(size)
        multiply = lambda c: (jnp.matmul(c[0], c[1], precision=precision), c[1])
        return rate(2 * size**3 / 1e12, timer(multiply, (matrix, matrix), seconds))

    copy = timer(lambda x: x + 1, jnp.zeros(length, jnp.float32), seconds)
    return {
        "default": product(jnp.float32, None),
        "highest": product(jnp.float32, "highest"),
        "bfloat16": product(jnp.bfloat16, None),
        "copy": rate(2 * 4 * length / 1e9, copy),
    }


def work_of(config: TrainConfig) -> Work:
    """The minimum work of one environment step of a control run with PPO.

    An action takes one forward pass of the network; each epoch takes three times as much work, one
    forward pass and a backward pass of twice its work. Transitions are written to memory once and
    read in every epoch.
    """
    program = build(config)
    state = jax.eval_shape(program.init, jax.random.key(0))
    params, start = state.learner.params, jnp.zeros(config.num_envs, bool)
    arguments = (params, state.rollout.core, state.rollout.obs, start)
    acting = flops_of(program.policy.act, *arguments) / config.num_envs
    row = sum(array_bytes(x) for x in jax.tree.leaves(state.rollout.obs)) / config.num_envs
    # Action, log-probability, value, next value, reward, advantage, target, weight, and flags.
    row += 8 * 4 + 2
    epochs, rows = config.hyper.epochs, config.num_envs * config.num_steps
    steps = epochs * config.hyper.minibatches
    size = sum(array_bytes(x) for x in jax.tree.leaves(params))
    moved = row * (1 + epochs) + ADAM_PASSES * size * steps / rows
    return Work(flops=acting * (1 + 3 * epochs), bytes=moved)


def array_bytes(shape: Any) -> int:
    """The size of an array in bytes."""
    return shape.size * shape.dtype.itemsize


def flops_of(function: Callable[..., PyTree], *arguments: PyTree) -> float:
    """Operations of the matrix products and convolutions in a function.

    They are counted in its jaxpr: compilers count the body of a loop once, and JAX has no count
    before compilation on GPUs. A scan counts as often as it runs, a while loop once, and of the
    branches of a condition the largest.
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
        inner = [_products(jaxpr) for jaxpr in jaxprs_in_params(parameters)]
        if equation.primitive.name == "cond":
            inner = [max(inner)]
        times = parameters["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(inner)
    return total


def shares(
    work: Work, rate: float, ceilings: dict[str, float], precision: str = "default"
) -> dict[str, float]:
    """The achieved rates of a program, and their fractions of the device's peak rates.

    Args:
        work: minimum work of one step.
        rate: steps per second.
        ceilings: peak rates of the device by name; a fraction of a missing rate is left out.
        precision: name of the peak rate that products are compared with.

    Returns:
        Columns of a row by name.
    """
    found = {
        "tflops_per_second": significant(work.flops * rate / 1e12),
        "gb_per_second": significant(work.bytes * rate / 1e9),
    }
    if precision in ceilings:
        found["of_matmul"] = significant(work.flops * rate / 1e12 / ceilings[precision])
    if "copy" in ceilings:
        found["of_bandwidth"] = significant(work.bytes * rate / 1e9 / ceilings["copy"])
    return found


def significant(x: float, digits: int = 3) -> float:
    """A number rounded to a number of significant digits."""
    return float(f"{x:.{digits}g}")
