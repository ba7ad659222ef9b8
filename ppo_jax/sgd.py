"""Minibatch gradient descent: one step, and epochs of shuffled steps.

The optimiser is defined in `ppo_jax.optimizer`, whose names this module exports as well.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from ppo_jax import backend, losses, packed, parallel, shapes, watch
from ppo_jax.optimizer import (
    OptimizerState,
    adam_eps,
    anneal,
    anneal_timesteps,
    from_config,
    init,
    learning_rate,
    make_optimizer,
    max_grad_norm,
    report,
    schedule_of,
)
from ppo_jax.types import Batch, LearnerState, LossFn, Metrics, Params, PyTree

# With at most this number of parameters, starting an operation takes longer than executing it, and
# one vector is faster than a pytree. With many more, the conversion takes longer than it saves.
FEW_PARAMS = 200_000
# Gathering a leaf with at most this number of elements per sample takes longer to start than to
# execute; such leaves are gathered together.
NARROW = 32

__all__ = [
    "OptimizerState",
    "adam_eps",
    "anneal",
    "anneal_timesteps",
    "as_vector",
    "from_config",
    "init",
    "learning_rate",
    "make_optimizer",
    "max_grad_norm",
    "report",
    "row_taker",
    "schedule_of",
    "sgd_epochs",
    "sgd_step",
    "shuffles",
]


def sgd_step(
    learner: LearnerState,
    rows: PyTree,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    reduce: Callable[[PyTree], PyTree] = lambda x: x,
    micro_batches: int = 1,
) -> tuple[LearnerState, Metrics]:
    """One step of gradient descent.

    Args:
        learner: parameters and state of the optimiser.
        rows: samples, a pytree with leaves [M, ...].
        loss_fn: function (params, rows) -> (loss [], metrics).
        optimizer: an optax transformation.
        reduce: function applied to the gradient and the metrics. These are already averaged over
            all shards of the batch, if there are several (`ppo_jax.parallel`).
        micro_batches: number of equal parts of the samples over which the gradient is accumulated.
            The result equals that of the whole batch if the loss is a weighted mean. A loss that
            couples samples (such as advantages normalised per minibatch) is computed within each
            part.

    Returns:
        (LearnerState after the step, metrics of the loss and grad_norm before clipping).
    """
    grads, metrics = _gradient(
        learner.params, rows, loss_fn, reduce=reduce, micro_batches=micro_batches
    )
    return _apply(learner, grads, optimizer), metrics


def shuffles(key: jax.Array, num_rows: int, epochs: int) -> jax.Array:
    """An independent random permutation of the samples for each epoch.

    Random 32-bit numbers are sorted once. jax.random.permutation sorts several times to resolve
    the rare ties, which keep their order here.

    Args:
        key: PRNG key.
        num_rows: number M of samples.
        epochs: number K of epochs.

    Returns:
        [K, M] int32, a permutation of the samples in each row.
    """
    bits = jax.random.bits(key, (epochs, num_rows), jnp.uint32)
    # The random number and the index are packed into one 64-bit number, because XLA sorts a single
    # operand much faster than a pair on CPUs.
    with jax.enable_x64(True):
        packed = (bits.astype(jnp.uint64) << 32) | jnp.arange(num_rows, dtype=jnp.uint64)
        return jnp.sort(packed, axis=1, stable=False).astype(jnp.uint32).astype(jnp.int32)


def sgd_epochs(
    learner: LearnerState,
    rows: PyTree,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    order: jax.Array,
    minibatches: int,
    stop: Callable[[Metrics], jax.Array] | None = None,
    micro_batches: int = 1,
    prepare: Callable[[PyTree], PyTree] = lambda rows: rows,
) -> tuple[LearnerState, Metrics]:
    """Several epochs of minibatch gradient descent over the same samples.

    Args:
        learner: parameters and state of the optimiser.
        rows: samples, a pytree with leaves [M, ...].
        loss_fn: function (params, rows) -> (loss [], metrics).
        optimizer: an optax transformation.
        order: [K, M] order of the samples in each epoch.
        minibatches: number of minibatches per epoch, a divisor of M.
        stop: function metrics -> bool, called for each minibatch after its gradient is computed
            and before the step. Once it returns True, this step and all later ones are skipped.
        micro_batches: number of parts of a minibatch over which the gradient is accumulated, as
            for `sgd_step`.
        prepare: function applied to the samples of each minibatch before they are divided into
            parts, for numbers that depend on the whole minibatch.

    Returns:
        (LearnerState, metrics averaged over the steps that were taken).

    Raises:
        ValueError: if the order is not [K, M] for these samples, or the number of minibatches does
            not divide M.

    Source: Schulman et al. 2017, algorithm 1, line 6.
    """
    _check_order(rows, order, minibatches)
    learner, loss_fn, unravel = as_vector(learner, loss_fn)
    if stop is None:

        def step(learner: LearnerState, minibatch: PyTree) -> tuple[LearnerState, Metrics]:
            return sgd_step(learner, minibatch, loss_fn, optimizer, micro_batches=micro_batches)

        learner, metrics = _scan_minibatches(
            step, learner, rows, order, minibatches=minibatches, prepare=prepare
        )
        return unravel(learner), jax.tree.map(jnp.mean, metrics)

    guarded = functools.partial(
        _step_unless_stopped,
        loss_fn=loss_fn,
        optimizer=optimizer,
        stop=stop,
        micro_batches=micro_batches,
    )
    start = (learner, jnp.array(True))
    (learner, _), (metrics, taken) = _scan_minibatches(
        guarded, start, rows, order, minibatches=minibatches, prepare=prepare
    )
    # If the first step was not taken either, its metrics are reported: they show the reason.
    counted = taken.at[0].set(True)
    metrics = jax.tree.map(lambda m: losses.mean(m, counted.astype(m.dtype)), metrics)
    return unravel(learner), metrics


def as_vector(
    learner: LearnerState, loss_fn: LossFn
) -> tuple[LearnerState, LossFn, Callable[[LearnerState], LearnerState]]:
    """Convert the parameters, and each moment of Adam, to one vector.

    Clipping and Adam are then three loops over one array instead of three loops over every array,
    which makes updates with small minibatches faster. The conversion is correct because both treat
    all elements alike. For any other optimiser or state this is unknown, and the learner is
    returned unchanged.

    Args:
        learner: learner whose parameters are a pytree.
        loss_fn: loss of such parameters.

    Returns:
        (LearnerState with params and both moments of Adam [P], function (params [P], rows) ->
        (loss [], metrics), function that converts such a learner back to pytrees).
    """
    state = learner.opt_state
    dtypes = {jnp.result_type(x) for x in jax.tree.leaves(learner.params)}
    size = sum(x.size for x in jax.tree.leaves(learner.params))
    named = watch.active()  # leaves of a pytree have names, elements of a vector do not
    if type(state) is not OptimizerState or len(dtypes) > 1 or size > FEW_PARAMS or named:
        return learner, loss_fn, lambda learner: learner
    vector, unravel = ravel_pytree(learner.params)

    def moments(learner: LearnerState, change: Callable[[PyTree], PyTree]) -> OptimizerState:
        adam = learner.opt_state.adam
        adam = adam._replace(mu=change(adam.mu), nu=change(adam.nu))
        return learner.opt_state._replace(adam=adam)

    def back(learner: LearnerState) -> LearnerState:
        opt_state = moments(learner, unravel)
        return dataclasses.replace(learner, params=unravel(learner.params), opt_state=opt_state)

    opt_state = moments(learner, lambda tree: ravel_pytree(tree)[0])
    learner = dataclasses.replace(learner, params=vector, opt_state=opt_state)
    return learner, lambda vector, rows: loss_fn(unravel(vector), rows), back


def row_taker(rows: PyTree) -> Callable[[jax.Array], PyTree]:
    """A function that gathers a minibatch: index [B] -> the samples at these indices, unchanged.

    Narrow float32 leaves are joined as columns of one matrix and gathered at once, which is faster
    than one gather for each leaf.

    Args:
        rows: samples, a pytree with leaves [M, ...].
    """
    leaves, structure = jax.tree.flatten(rows)
    widths = [math.prod(x.shape[1:]) for x in leaves]
    narrow = [x.dtype == jnp.float32 and w <= NARROW for x, w in zip(leaves, widths, strict=True)]
    columns = [
        x.reshape(len(x), width)
        for x, width, is_narrow in zip(leaves, widths, narrow, strict=True)
        if is_narrow
    ]
    if not columns:
        return lambda index: jax.tree.map(lambda x: x[index], rows)
    matrix = jnp.concatenate(columns, axis=1)
    ends = [*itertools.accumulate(x.shape[1] for x in columns)]

    def take(index: jax.Array) -> PyTree:
        parts = iter(jnp.split(matrix[index], ends[:-1], axis=1))

        def of(leaf: jax.Array, is_narrow: bool) -> jax.Array:
            if not is_narrow:
                return leaf[index]
            return next(parts).reshape(len(index), *leaf.shape[1:])

        return jax.tree.unflatten(structure, map(of, leaves, narrow))

    return take


def _batch_taker(rows: Batch) -> Callable[[jax.Array], Batch]:
    """`row_taker` for a Batch, written so that XLA can see whether every weight is 1.

    In an environment without steps of weight 0 the weights are a compile-time constant, and XLA
    removes all arithmetic with weights from the loop. Gathered weights are never constant.
    """
    all_count = jnp.all(rows.weight == 1)
    nothing: Any = ()
    take = row_taker(dataclasses.replace(rows, weight=nothing))

    def take_batch(index: jax.Array) -> Batch:
        weight = jnp.where(all_count, jnp.ones((), rows.weight.dtype), rows.weight[index])
        return dataclasses.replace(take(index), weight=weight)

    return take_batch


def _check_order(rows: PyTree, order: jax.Array, minibatches: int) -> None:
    shapes.rank("sgd_epochs", "[K, M]", order=order)
    num_rows = order.shape[1]
    shapes.rows("sgd_epochs", num_rows, f"the order {order.shape}", rows)
    if minibatches < 1 or num_rows % minibatches:
        raise ValueError(f"{num_rows} samples cannot be divided into {minibatches} minibatches")


def _scan_minibatches(
    step: Callable[..., Any],
    carry: Any,
    rows: PyTree,
    order: jax.Array,
    *,
    minibatches: int,
    prepare: Callable[[PyTree], PyTree],
) -> tuple[Any, Any]:
    """Apply `step` to every minibatch of every epoch: (carry, results [K * minibatches]).

    The samples of a minibatch are gathered immediately before its step, while they fit into the
    cache. No shuffled copy of the whole batch is made.
    """
    few = backend.launch_bound()
    take = _batch_taker(rows) if few and isinstance(rows, Batch) else row_taker(rows)

    def body(carry: Any, index: jax.Array) -> tuple[Any, Any]:
        carry, result = step(carry, prepare(take(index)))
        return carry, packed.pack(result) if few else result

    carry, results = jax.lax.scan(body, carry, order.reshape(order.shape[0] * minibatches, -1))
    return carry, packed.unpack(results) if few else results


def _step_unless_stopped(
    carry: tuple[LearnerState, jax.Array],
    rows: PyTree,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    stop: Callable[[Metrics], jax.Array],
    micro_batches: int,
) -> tuple[tuple[LearnerState, jax.Array], tuple[Metrics, jax.Array]]:
    """One step unless training has stopped: ((learner, running), (metrics, step taken))."""
    learner, running = carry

    def attempt() -> Any:
        grads, metrics = _gradient(learner.params, rows, loss_fn, micro_batches=micro_batches)
        fine = ~jnp.asarray(stop(metrics), bool)
        moved = jax.lax.cond(fine, lambda: _apply(learner, grads, optimizer), lambda: learner)
        return (moved, fine), (metrics, fine)

    def skip() -> Any:
        nothing = jax.eval_shape(attempt)[1]
        return carry, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), nothing)

    return jax.lax.cond(running, attempt, skip)


def _gradient(
    params: Params,
    rows: PyTree,
    loss_fn: LossFn,
    *,
    reduce: Callable[[PyTree], PyTree] = lambda x: x,
    micro_batches: int = 1,
) -> tuple[PyTree, Metrics]:
    """The gradient of the loss and the metrics, accumulated over micro-batches.

    Each micro-batch is weighted by the weights of its samples, so that the sum is the gradient of
    the mean over the batch. If the batch has several shards, the gradient is that of all of them.
    """

    def part(rows: PyTree) -> tuple[PyTree, Metrics]:
        return jax.grad(loss_fn, has_aux=True)(params, rows)

    if micro_batches == 1:
        grads, metrics = part(rows)
    else:
        grads, metrics = _accumulate(part, rows, micro_batches)
    watch.see("gradient", loss=metrics, gradient=grads)
    grads, metrics = reduce((parallel.mean(grads), parallel.average(metrics)))
    return grads, {**metrics, "grad_norm": optax.tree.norm(grads)}


def _accumulate(part: Callable[[PyTree], Any], rows: PyTree, micro_batches: int) -> Any:
    """Σ share_i part(rows_i), where share_i is the fraction of the total weight in part i."""
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    shapes.rows("sgd_step", num_rows, "the first leaf", rows)
    if num_rows % micro_batches:
        raise ValueError(f"{num_rows} samples cannot be divided into {micro_batches} micro-batches")
    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), rows)
    weight = parts.weight if isinstance(rows, Batch) else jnp.ones((micro_batches, 1))
    weight = parallel.sum(jnp.sum(weight.reshape(micro_batches, -1), axis=1))
    share = weight / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny)

    def add(total: Any, part_and_share: Any) -> tuple[Any, None]:
        rows, share = part_and_share
        return jax.tree.map(lambda t, x: t + share.astype(t.dtype) * x, total, part(rows)), None

    like = jax.eval_shape(part, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
    return jax.lax.scan(add, zeros, (parts, share))[0]


def _apply(
    learner: LearnerState, grads: PyTree, optimizer: optax.GradientTransformation
) -> LearnerState:
    updates, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
    params = optax.apply_updates(learner.params, updates)
    watch.see("parameters", parameters=params)
    return dataclasses.replace(learner, params=params, opt_state=opt_state, step=learner.step + 1)
