"""The optimiser: Adam with a traced learning rate, its options, and learning-rate schedules."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ppo_jax import losses, parallel
from ppo_jax.config import schedules
from ppo_jax.config.options import ConfigError
from ppo_jax.config.options import check as check_option
from ppo_jax.config.schedules import Schedule, is_adaptive, is_schedule, value_at
from ppo_jax.config.schedules import check_moving as check_schedules
from ppo_jax.config.standard import adam_eps as adam_eps
from ppo_jax.config.standard import anneal_timesteps as anneal_timesteps
from ppo_jax.config.standard import learning_rate as learning_rate
from ppo_jax.config.standard import max_grad_norm as max_grad_norm
from ppo_jax.muon import is_matrix, scale_by_muon
from ppo_jax.types import Batch, LearnerState, Metrics, Params, PyTree


class OptimizerState(NamedTuple):
    """Adam's state and the current learning rate, which is part of the state.

    Attributes:
        adam: estimates of the first and second moments of the gradient.
        learning_rate: [] learning rate of the next step.
        updates: [] number of calls of `anneal` so far, the position in the schedule.
    """

    adam: Any
    learning_rate: jax.Array
    updates: jax.Array


class MatrixState(OptimizerState):
    """State of an optimiser that decays the weights of matrices alone.

    `sgd` flattens all parameters into one vector only if the state is exactly an `OptimizerState`,
    because a vector does not show which of its elements belong to matrices.
    """


def make_optimizer(
    max_grad_norm: jax.Array | float = 0.5,
    eps: jax.Array | float = 1e-5,
    *,
    learning_rate: Any = 3e-4,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: jax.Array | float | None = None,
    adam: Callable[..., optax.GradientTransformation] = optax.scale_by_adam,
) -> optax.GradientTransformation:
    """Adam with gradient clipping by the global norm.

    g ← g · min(1, c / (‖g‖ + 1e-6)),   θ ← θ − α (m̂ / (√v̂ + ε) + λ θ);
    λ = 0 for all but matrices and filters: biases, scales of normalisation layers, log σ

    Every hyperparameter may be a tracer, so that one compiled program serves all trials of a sweep.

    Args:
        max_grad_norm: maximum norm c of the gradient of all parameters; infinity for no clipping.
        eps: ε, added outside the square root.
        learning_rate: learning rate α until `anneal` sets another one, or a schedule, whose
            initial value is used.
        b1: decay rate of the first moment.
        b2: decay rate of the second moment.
        weight_decay: weight decay λ of matrices and of convolutions; None for no weight decay.
        adam: function with the arguments of optax.scale_by_adam, for a variant of Adam or another
            optimiser.

    Returns:
        An optax transformation whose state is an `OptimizerState`; a `MatrixState` with weight
        decay.

    Source: Kingma & Ba 2015; ε = 1e-5 and joint clipping follow openai/baselines ppo2; the weight
    decay is that of Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2.
    """
    moments_of = adam(b1=b1, b2=b2, eps=eps)
    state_of = OptimizerState if weight_decay is None else MatrixState

    def decayed(path: tuple[Any, ...], direction: jax.Array, x: jax.Array) -> jax.Array:
        if weight_decay is None or not is_matrix(path, x):
            return direction
        return direction + (weight_decay * x).astype(direction.dtype)

    def init(params: Params) -> OptimizerState:
        rate = jnp.asarray(value_at(learning_rate, 0.0), jnp.float32)
        return state_of(moments_of.init(params), rate, jnp.zeros((), jnp.int32))

    def update(
        grads: PyTree, state: OptimizerState, params: Params | None = None
    ) -> tuple[PyTree, OptimizerState]:
        factor = jnp.minimum(1.0, max_grad_norm / (optax.tree.norm(grads) + 1e-6))
        clipped = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
        direction, moments = moments_of.update(clipped, state.adam, params)
        if weight_decay is not None:
            direction = jax.tree_util.tree_map_with_path(decayed, direction, params)
        step = jax.tree.map(lambda d: -state.learning_rate.astype(d.dtype) * d, direction)
        return step, state._replace(adam=moments)

    return optax.GradientTransformation(init, update)


def init(
    params: Params, optimizer: optax.GradientTransformation, extra: PyTree = ()
) -> LearnerState:
    """The state of a learner before its first step.

    Args:
        params: parameters of the policy.
        optimizer: optimiser of all parameters.
        extra: private state of the algorithm.
    """
    return LearnerState(params, optimizer.init(params), jnp.zeros((), jnp.int32), extra)


Begin = Callable[[LearnerState, int], tuple[LearnerState, Any]]
End = Callable[[LearnerState, Batch, Any, Metrics], tuple[LearnerState, Metrics]]


def from_config(
    config: Any, optimizer: optax.GradientTransformation | None = None
) -> tuple[optax.GradientTransformation, Begin, End]:
    """The optimiser of an algorithm, and the functions that begin and end each of its updates.

    Args:
        config: Config with the options learning_rate, anneal_timesteps, max_grad_norm and adam_eps;
            it may also have adam_reset, weight_decay and optimizer. If its anneal_timesteps is
            None, the learning rate is constant (a run replaces None by its own length beforehand).
        optimizer: optimiser to use in place of the configured one. It controls its own learning
            rate.

    Returns:
        (optimizer, begin, end) with the two functions of `schedule_of`.

    Raises:
        ConfigError: if a schedule cannot be followed.
    """
    if optimizer is not None:
        return optimizer, *_without_schedule(config)
    horizon = math.inf if config.anneal_timesteps is None else config.anneal_timesteps
    check_schedules(config, horizon)
    ours = make_optimizer(
        config.max_grad_norm,
        config.adam_eps,
        learning_rate=config.learning_rate,
        weight_decay=getattr(config, "weight_decay", None),
        adam=scale_by_muon
        if getattr(config, "optimizer", "adam") == "muon"
        else optax.scale_by_adam,
    )
    return ours, *schedule_of(config, horizon)


def schedule_of(config: Any, horizon: jax.Array | float) -> tuple[Begin, End]:
    """Functions that run before and after the gradient steps of an update.

    Args:
        config: Config whose options may be schedules, with the learning rate of the update.
        horizon: number of environment steps at which schedules end, as for `anneal`.

    Returns:
        begin: (learner, timesteps) -> (learner with its learning rate set, config with numbers in
            place of schedules), for an update on that number of environment steps.
        end: (learner, batch, config with numbers, metrics) -> (learner, metrics with those of
            `report` and the values of schedules); an adaptive learning rate is adapted.

    Raises:
        ConfigError: if a schedule is not valid for its option.
    """
    scheduled = [f for f in dataclasses.fields(config) if is_schedule(getattr(config, f.name))]
    for field in scheduled:
        check_option(field, getattr(config, field.name))
    names = [f.name for f in scheduled if f.name != "learning_rate"]

    def begin(learner: LearnerState, timesteps: int) -> tuple[LearnerState, Any]:
        now = schedules.at(config, progress(learner, horizon, timesteps)) if scheduled else config
        if getattr(config, "adam_reset", False):
            learner = restart_bias_correction(learner)
        return anneal(learner, config.learning_rate, horizon, timesteps), now

    def end(
        learner: LearnerState, batch: Batch, now: Any, metrics: Metrics
    ) -> tuple[LearnerState, Metrics]:
        values = {name: getattr(now, name) for name in names}
        metrics = {**metrics, **report(learner, batch), **values}
        if not is_adaptive(config.learning_rate):
            return learner, metrics
        return _adapted(learner, config.learning_rate, metrics), metrics

    return begin, end


def _without_schedule(config: Any) -> tuple[Begin, End]:
    """Begin and end for an optimiser of the user, whose updates are not counted."""
    for name, value in (("optimizer", "adam"), ("adam_reset", False), ("weight_decay", None)):
        given = getattr(config, name, value)
        if given != value:
            raise ConfigError(
                f"{name} is {given}, but a custom optimizer takes the place of the configured one; "
                f"use {name}={value}"
            )
    for field in dataclasses.fields(config):
        if field.name != "learning_rate" and is_schedule(getattr(config, field.name)):
            raise ConfigError(
                f"{field.name} is a schedule, but the updates of a custom optimizer are not "
                "counted, so the schedule has no position; set the option to a number"
            )

    def end(
        learner: LearnerState, batch: Batch, now: Any, metrics: Metrics
    ) -> tuple[LearnerState, Metrics]:
        return learner, {**metrics, **report(learner, batch)}

    return lambda learner, timesteps: (learner, config), end


def progress(learner: LearnerState, horizon: jax.Array | float, timesteps: int) -> jax.Array:
    """The fraction of the horizon before the current update; above 1 after the horizon.

    p = u · D · timesteps / horizon,   u = updates before this one, D = number of shards

    Args:
        learner: learner with an optimiser of `make_optimizer`.
        horizon: number of environment steps.
        timesteps: number of environment steps per update, in one shard of the environments.

    Returns:
        [] progress p.
    """
    timesteps = timesteps * parallel.size()
    return learner.opt_state.updates.astype(jnp.float32) * timesteps / horizon


def anneal(
    learner: LearnerState,
    learning_rate: Any,
    horizon: jax.Array | float,
    timesteps: int,
) -> LearnerState:
    """Set the learning rate of the current update.

    α_u = α max(0, 1 − p) for a number α, and the value at p for a schedule, where p is the
    `progress`. An adaptive learning rate keeps the value that the previous update left.

    Args:
        learner: learner with an optimiser of `make_optimizer`.
        learning_rate: initial learning rate α, or a schedule.
        horizon: number of environment steps after which the learning rate is 0; infinity for a
            constant learning rate.
        timesteps: number of environment steps per update, in one shard of the environments.

    Returns:
        LearnerState with the learning rate set and one more update counted.

    Source: openai/baselines ppo2 (linear decay to zero).
    """
    state = learner.opt_state
    share = progress(learner, horizon, timesteps)
    if is_adaptive(learning_rate):
        rate = state.learning_rate
    elif is_schedule(learning_rate):
        rate = value_at(learning_rate, share)
    else:
        rate = learning_rate * jnp.maximum(0.0, 1.0 - share)
    rate = jnp.asarray(rate, jnp.float32)
    state = state._replace(learning_rate=rate, updates=state.updates + 1)
    return dataclasses.replace(learner, opt_state=state)


def restart_bias_correction(learner: LearnerState) -> LearnerState:
    """Set Adam's step counter t to 0 and keep its averages m and v.

    m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   step α m / (1 − β₁ᵗ) / √(v / (1 − β₂ᵗ))

    The next rollout poses another objective, whose first gradients may be much larger than √v. With
    t = 1, such a gradient makes a step of about α; with a large t, of up to α (1 − β₁) / √(1 − β₂),
    which is 3.2 α.

    Args:
        learner: learner with an optimiser of `make_optimizer`.

    Source: Ellis et al. 2024, Adam on Local Time: Addressing Nonstationarity in RL with Relative
    Adam Timesteps (arXiv:2412.17113).
    """
    state = learner.opt_state
    adam = state.adam._replace(count=jnp.zeros_like(state.adam.count))
    return dataclasses.replace(learner, opt_state=state._replace(adam=adam))


def adapt(
    rate: jax.Array,
    kl: jax.Array,
    target_kl: jax.Array | float,
    *,
    low: jax.Array | float,
    high: jax.Array | float,
) -> jax.Array:
    """Adapt the learning rate to keep the KL divergence of an update near a target.

    α ← max(low, α / 1.5) if d > 2 d_target,   α ← min(high, 1.5 α) if 0 < d < d_target / 2

    Args:
        rate: [...] learning rate α.
        kl: [...] KL divergence d of the update, in nats.
        target_kl: target d_target of the KL divergence, in nats.
        low: lower bound of α.
        high: upper bound of α.

    Returns:
        [...] learning rate α of the next update.

    Source: rsl_rl, PPO with schedule="adaptive", and Brax, ppo.optimizer.adaptive_kl_learning_rate.
    Both adapt after each minibatch; this function is applied once per update.
    """
    lower, higher = jnp.maximum(low, rate / 1.5), jnp.minimum(high, rate * 1.5)
    near = jnp.where((kl > 0) & (kl < 0.5 * target_kl), higher, rate)
    return jnp.where(kl > 2.0 * target_kl, lower, near).astype(rate.dtype)


def _adapted(learner: LearnerState, schedule: Schedule, metrics: Metrics) -> LearnerState:
    if "approx_kl" not in metrics:
        raise ConfigError(
            f"learning_rate is {schedule}, which requires the metric approx_kl of each update; "
            f"this algorithm reports {', '.join(sorted(metrics))}"
        )
    numbers = {n: x for n, x in schedule.parameters.items() if n != "start"}
    rate = adapt(learner.opt_state.learning_rate, metrics["approx_kl"], **numbers)
    state = learner.opt_state._replace(learning_rate=rate)
    return dataclasses.replace(learner, opt_state=state)


def report(learner: LearnerState, batch: Batch) -> Metrics:
    """Metrics of every update: the explained variance of the critic and the learning rate.

    The learning rate of a custom optimiser is unknown and left out.
    """
    state = learner.opt_state
    rate = {"learning_rate": state.learning_rate} if isinstance(state, OptimizerState) else {}
    explained = losses.explained_variance(batch.value, batch.target, batch.weight)
    return {"explained_variance": explained, **rate}
