"""The optimiser: Adam with a traced learning rate, its options, and what it follows over a run."""

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
from ppo_jax.types import Batch, LearnerState, Metrics, Params, PyTree


class OptimizerState(NamedTuple):
    """Adam's moments and the learning rate in force, which is state and not a constant.

    Attributes:
        adam: first and second moments.
        learning_rate: [] for the next step.
        updates: [] calls of `anneal` so far; the position on the schedule.
    """

    adam: Any
    learning_rate: jax.Array
    updates: jax.Array


def make_optimizer(
    max_grad_norm: jax.Array | float = 0.5,
    eps: jax.Array | float = 1e-5,
    *,
    learning_rate: Any = 3e-4,
    b1: float = 0.9,
    b2: float = 0.999,
    adam: Callable[..., optax.GradientTransformation] = optax.scale_by_adam,
) -> optax.GradientTransformation:
    """Adam with a bound on the gradient's global norm.

    g ← g · min(1, c / (‖g‖ + 1e-6)),   θ ← θ − α m̂ / (√v̂ + ε)

    Every hyperparameter may be a tracer, so one compiled program serves a whole sweep.

    Args:
        max_grad_norm: c, over all parameters together; infinity for no bound.
        eps: ε, outside the square root.
        learning_rate: α until `anneal` sets another; of a schedule its value at the beginning.
        b1: decay of the first moment.
        b2: decay of the second moment.
        adam: another version of it, made as optax.scale_by_adam is and with its state.

    Returns:
        An optax transformation whose state is an `OptimizerState`.

    Source: Kingma & Ba 2015; ε = 1e-5 and the joint clipping are openai/baselines ppo2's.
    """
    moments_of = adam(b1=b1, b2=b2, eps=eps)

    def init(params: Params) -> OptimizerState:
        rate = jnp.asarray(value_at(learning_rate, 0.0), jnp.float32)
        return OptimizerState(moments_of.init(params), rate, jnp.zeros((), jnp.int32))

    def update(
        grads: PyTree, state: OptimizerState, params: Params | None = None
    ) -> tuple[PyTree, OptimizerState]:
        factor = jnp.minimum(1.0, max_grad_norm / (optax.tree.norm(grads) + 1e-6))
        clipped = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
        direction, moments = moments_of.update(clipped, state.adam, params)
        step = jax.tree.map(lambda d: -state.learning_rate.astype(d.dtype) * d, direction)
        return step, state._replace(adam=moments)

    return optax.GradientTransformation(init, update)


def init(
    params: Params, optimizer: optax.GradientTransformation, extra: PyTree = ()
) -> LearnerState:
    """A learner at its first step.

    Args:
        params: of the policy.
        optimizer: for all of them.
        extra: private state of the algorithm.
    """
    return LearnerState(params, optimizer.init(params), jnp.zeros((), jnp.int32), extra)


Begin = Callable[[LearnerState, int], tuple[LearnerState, Any]]
End = Callable[[LearnerState, Batch, Any, Metrics], tuple[LearnerState, Metrics]]


def from_config(
    config: Any, optimizer: optax.GradientTransformation | None = None
) -> tuple[optax.GradientTransformation, Begin, End]:
    """The optimiser of an algorithm, and what goes on at both ends of its updates.

    Args:
        config: with the four options above; an anneal_timesteps of None, which a run replaces by
            its own length, is a constant rate here.
        optimizer: to be used instead of the one the config describes; its learning rate is its
            own affair.

    Returns:
        (optimizer, begin, end), the latter two as `schedule_of` has them.

    Raises:
        ConfigError: a schedule that cannot be followed, and why.
    """
    if optimizer is not None:
        return optimizer, *_without_schedule(config)
    horizon = math.inf if config.anneal_timesteps is None else config.anneal_timesteps
    check_schedules(config, horizon)
    ours = make_optimizer(config.max_grad_norm, config.adam_eps, learning_rate=config.learning_rate)
    return ours, *schedule_of(config, horizon)


def schedule_of(config: Any, horizon: jax.Array | float) -> tuple[Begin, End]:
    """What goes on before and after the steps of an update.

    Args:
        config: whose options may be schedules; its learning_rate is that of the update.
        horizon: what `anneal` has, and the schedules are at their end.

    Returns:
        begin: (learner, timesteps) -> (learner with its learning rate set, the config with numbers
            in place of schedules), for an update that learns from that many environment steps.
        end: (learner, batch, the config with numbers, metrics) -> (learner, metrics with what
            `report` says and the values of schedules); an adaptive learning rate moves.

    Raises:
        ConfigError: a schedule that the option does not have.
    """
    scheduled = [f for f in dataclasses.fields(config) if is_schedule(getattr(config, f.name))]
    for field in scheduled:
        check_option(field, getattr(config, field.name))
    names = [f.name for f in scheduled if f.name != "learning_rate"]

    def begin(learner: LearnerState, timesteps: int) -> tuple[LearnerState, Any]:
        now = schedules.at(config, progress(learner, horizon, timesteps)) if scheduled else config
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
    """Where the optimiser is another's, and nothing counts its updates."""
    for field in dataclasses.fields(config):
        if field.name != "learning_rate" and is_schedule(getattr(config, field.name)):
            raise ConfigError(
                f"{field.name} is a schedule, but with an optimiser of your own nothing counts the "
                "updates; give it a number"
            )

    def end(
        learner: LearnerState, batch: Batch, now: Any, metrics: Metrics
    ) -> tuple[LearnerState, Metrics]:
        return learner, {**metrics, **report(learner, batch)}

    return lambda learner, timesteps: (learner, config), end


def progress(learner: LearnerState, horizon: jax.Array | float, timesteps: int) -> jax.Array:
    """The share of the horizon that lies behind the update that now begins; more than 1 after it.

    p = u · D · timesteps / horizon,   u = updates made before this one, D = parts of the batch

    Args:
        learner: of `make_optimizer`.
        horizon: environment steps.
        timesteps: environment steps per update, of one part.
    """
    timesteps = timesteps * parallel.size()
    return learner.opt_state.updates.astype(jnp.float32) * timesteps / horizon


def anneal(
    learner: LearnerState,
    learning_rate: Any,
    horizon: jax.Array | float,
    timesteps: int,
) -> LearnerState:
    """Set the learning rate of the update that now begins.

    α_u = α max(0, 1 − p) of a number, and the schedule's value at p of a schedule, where p is the
    `progress`; an adaptive rate is as the last update left it

    Args:
        learner: of `make_optimizer`; its rate is set, its place on the schedule moved by one.
        learning_rate: α, of the first update; or a schedule.
        horizon: environment steps after which the rate is 0; infinity for a constant rate.
        timesteps: environment steps per update, of one part of the batch.

    Returns:
        LearnerState.

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


def adapt(
    rate: jax.Array,
    kl: jax.Array,
    target_kl: jax.Array | float,
    *,
    low: jax.Array | float,
    high: jax.Array | float,
) -> jax.Array:
    """The learning rate of the next update, which keeps the KL divergence near a target.

    α ← max(low, α / 1.5) where d > 2 d_target,   α ← min(high, 1.5 α) where 0 < d < d_target / 2

    Args:
        rate: [...] α.
        kl: [...] d, of the update, in nats.
        target_kl: d_target.
        low: bound of α.
        high: bound of α.

    Returns:
        [...] α.

    Source: rsl_rl, PPO with schedule="adaptive", and Brax, ppo.optimizer.adaptive_kl_learning_rate,
    which both apply it after each minibatch; here it is applied once per update.
    """
    lower, higher = jnp.maximum(low, rate / 1.5), jnp.minimum(high, rate * 1.5)
    near = jnp.where((kl > 0) & (kl < 0.5 * target_kl), higher, rate)
    return jnp.where(kl > 2.0 * target_kl, lower, near).astype(rate.dtype)


def _adapted(learner: LearnerState, schedule: Schedule, metrics: Metrics) -> LearnerState:
    if "approx_kl" not in metrics:
        raise ConfigError(
            f"learning_rate is {schedule}, which follows the approx_kl of updates; this algorithm "
            f"reports {', '.join(sorted(metrics))}"
        )
    numbers = {n: x for n, x in schedule.parameters.items() if n != "start"}
    rate = adapt(learner.opt_state.learning_rate, metrics["approx_kl"], **numbers)
    state = learner.opt_state._replace(learning_rate=rate)
    return dataclasses.replace(learner, opt_state=state)


def report(learner: LearnerState, batch: Batch) -> Metrics:
    """What is told of every update: how good the critic was, and the learning rate in force.

    The latter is unknown of an optimiser of the user's own.
    """
    state = learner.opt_state
    rate = {"learning_rate": state.learning_rate} if isinstance(state, OptimizerState) else {}
    explained = losses.explained_variance(batch.value, batch.target, batch.weight)
    return {"explained_variance": explained, **rate}
