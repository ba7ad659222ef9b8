"""Trust region policy optimisation: a constrained natural-gradient step (Schulman et al. 2015)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from ppo_jax import losses, parallel, sgd
from ppo_jax.advantages import estimate_gae
from ppo_jax.algorithms.configs import SHARED_TORSO
from ppo_jax.algorithms.configs import TRPO as Config
from ppo_jax.types import Algorithm, Batch, LearnerState, Metrics, Params, PyTree, Trajectory


def conjugate_gradient(
    matvec: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    iterations: int,
    *,
    x0: jax.Array | None = None,
    tolerance: jax.Array | float = 1e-10,
) -> jax.Array:
    """Solve A x = b for a symmetric positive definite A, with a fixed number of iterations.

    α = r·r / p·Ap,   x ← x + α p,   r ← r − α Ap,   p ← r + (r'·r' / r·r) p

    The number of iterations does not depend on the data, so that the function can be vmapped. After
    convergence x stays constant.

    Args:
        matvec: function v [P] -> A v [P].
        b: [P] right-hand side.
        iterations: number of products with A; one more is computed if x0 is given.
        x0: [P] initial solution, or None for 0.
        tolerance: threshold of ‖r‖² below which x is not changed further.

    Returns:
        [P] solution x.

    Source: Nocedal & Wright 2006, Numerical Optimization, algorithm 5.2.
    """

    def step(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, residual, direction, norm = state
        going = (norm >= tolerance) & (norm > 0)
        product = matvec(direction)
        alpha = norm / jnp.where(going, direction @ product, 1.0)
        closer = residual - alpha * product
        smaller = closer @ closer
        turned = closer + smaller / jnp.where(going, norm, 1.0) * direction
        moved = (x + alpha * direction, closer, turned, smaller)
        return jax.tree.map(lambda new, old: jnp.where(going, new, old), moved, state)

    x = jnp.zeros_like(b) if x0 is None else x0
    residual = b if x0 is None else b - matvec(x0)
    start = (x, residual, residual, residual @ residual)
    return jax.lax.fori_loop(0, iterations, step, start)[0]


class Trial(NamedTuple):
    """A trial of the line search.

    Attributes:
        theta: [P] parameters.
        objective: [] surrogate objective E[ρ Â].
        kl: [] mean KL divergence E[KL(π_old ‖ π_θ)], in nats.
        accepted: [] bool, whether the parameters were accepted.
        trials: [] number of step lengths tried so far.
    """

    theta: jax.Array
    objective: jax.Array
    kl: jax.Array
    accepted: jax.Array
    trials: jax.Array


def line_search(
    evaluate: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    theta: jax.Array,
    step: jax.Array,
    max_kl: jax.Array | float,
    *,
    factor: jax.Array | float = 0.8,
    trials: int = 10,
) -> Trial:
    """The longest of the steps s, c s, c² s, ... that improves the objective within the constraint.

    θ' = θ + c^i s,   L(θ') > L(θ) and KL(θ') <= δ;   θ' = θ if no step satisfies both

    Args:
        evaluate: function θ [P] -> (objective [], mean KL divergence []).
        theta: [P] current parameters θ.
        step: [P] full step s.
        max_kl: [] maximum mean KL divergence δ.
        factor: [] factor c between step lengths.
        trials: maximum number of step lengths.

    Returns:
        Trial with the accepted parameters, or with θ itself.

    Source: Schulman et al. 2015, appendix C.
    """
    before, _ = evaluate(theta)

    def searching(trial: Trial) -> jax.Array:
        return ~trial.accepted & (trial.trials < trials)

    def attempt(trial: Trial) -> Trial:
        length = jnp.asarray(factor, theta.dtype) ** trial.trials
        candidate = theta + length * step
        objective, kl = evaluate(candidate)
        return Trial(
            candidate, objective, kl, (objective > before) & (kl <= max_kl), trial.trials + 1
        )

    zero = jnp.zeros_like(before)
    start = Trial(theta, before, zero, jnp.array(False), jnp.array(0))
    last = jax.lax.while_loop(searching, attempt, start)
    stay = start._replace(trials=last.trials)
    return jax.tree.map(lambda new, old: jnp.where(last.accepted, new, old), last, stay)


class Problem(NamedTuple):
    """The constrained optimisation problem of an update, as functions of the actor's parameters.

    maximise L(θ) = E[ρ Â] subject to E[KL(π_old ‖ π_θ)] <= δ

    Attributes:
        theta: [P] parameters θ_old of the actor in one vector.
        gradient: [P] gradient g = ∇ L at θ_old.
        fisher: function v [P] -> (∇² E[KL] + c I) v [P], at θ_old.
        evaluate: function θ [P] -> (L(θ), E[KL(π_old ‖ π_θ)]).
        unravel: function θ [P] -> parameters as a pytree.
    """

    theta: jax.Array
    gradient: jax.Array
    fisher: Callable[[jax.Array], jax.Array]
    evaluate: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    unravel: Callable[[jax.Array], Params]


def make_problem(policy: Any, config: Config, params: Params, rows: Batch) -> Problem:
    """The constrained optimisation problem of one rollout.

    Args:
        policy: policy without a shared torso.
        config: Config with the damping c and the normalisation of advantages.
        params: behaviour parameters θ_old, from which the old distribution is computed.
        rows: Batch with leaves [M, ...].

    Source: Schulman et al. 2015, eq. 14 and appendix C.
    """
    rows = losses.mask(rows)
    theta, unravel = ravel_pytree(params["actor"])
    old = losses.predict(policy, params, rows).dist
    advantage = rows.advantage
    if config.normalize_advantage:
        advantage = losses.normalize(advantage, rows.weight)

    def predict(theta: jax.Array) -> losses.Prediction:
        return losses.predict(policy, {**params, "actor": unravel(theta)}, rows)

    def objective(new: losses.Prediction) -> jax.Array:
        loss = losses.surrogate(new.log_prob, rows.log_prob, advantage)
        return -losses.mean(loss, rows.weight)

    def evaluate(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = predict(theta)
        return objective(new), losses.mean(old.kl(new.dist), rows.weight)

    gradient = parallel.mean(jax.grad(lambda theta: objective(predict(theta)))(theta))
    hessian = kl_hessian(lambda theta: predict(theta).dist, theta, rows.weight)
    return Problem(theta, gradient, lambda v: hessian(v) + config.cg_damping * v, evaluate, unravel)


def kl_hessian(
    dist_of: Callable[[jax.Array], Any], theta: jax.Array, weight: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """Products with the Hessian of E[KL(π_old ‖ π_θ)] at θ_old, which is the Fisher matrix.

    v ↦ Jᵀ M J v,   J = ∂(outputs)/∂θ,   M = ∂² KL/∂(outputs)²

    This is the jvp of the gradient of the KL divergence. Its second term is 0 at θ_old, because
    the gradient with respect to the outputs is 0 there. J is linearised once for all products.

    Args:
        dist_of: function θ [P] -> distributions with batch shape [M].
        theta: [P] parameters θ_old.
        weight: [M] weights of the samples.

    Source: Schulman et al. 2015, appendix C.1.
    """
    old, push = jax.linearize(dist_of, theta)
    pull = jax.linear_transpose(push, theta)
    slope = jax.grad(lambda dist: losses.mean(old.kl(dist), weight))
    return lambda v: parallel.mean(pull(jax.jvp(slope, (old,), (push(v),))[1])[0])


def full_step(problem: Problem, max_kl: jax.Array | float, direction: jax.Array) -> jax.Array:
    """Scale the direction to the length that the quadratic model of the KL divergence allows.

    s = x √(2δ / xᵀHx)

    Args:
        problem: optimisation problem, for products with H.
        max_kl: [] maximum mean KL divergence δ.
        direction: [P] direction x with H x = g.

    Returns:
        [P] full step s; 0 if the gradient is 0.

    Source: Schulman et al. 2015, appendix C.
    """
    curvature = direction @ problem.fisher(direction)
    length = jnp.sqrt(2.0 * max_kl / jnp.where(curvature > 0, curvature, 1.0))
    return jnp.where(curvature > 0, length, 0.0) * direction


def natural_step(
    policy: Any, config: Config, params: Params, rows: Batch
) -> tuple[Params, Metrics]:
    """One constrained natural-gradient step of the actor.

    Args:
        policy: policy without a shared torso.
        config: Config with δ, the damping and the options of the line search.
        params: behaviour parameters of the rollout.
        rows: Batch with leaves [M, ...].

    Returns:
        (parameters after the step, metrics).

    Source: Schulman et al. 2015, section 6 and appendix C.
    """
    problem = make_problem(policy, config, params, rows)
    # The absolute tolerance that other implementations use, reduced for very small gradients, so
    # that the result does not depend on the scale of the rewards.
    tolerance = 1e-10 * jnp.minimum(1.0, 1e4 * (problem.gradient @ problem.gradient))
    direction = conjugate_gradient(
        problem.fisher, problem.gradient, config.cg_iterations, tolerance=tolerance
    )
    found = line_search(
        problem.evaluate,
        problem.theta,
        full_step(problem, config.max_kl, direction),
        config.max_kl,
        factor=config.backtrack_factor,
        trials=config.backtrack_trials,
    )
    params = {**params, "actor": problem.unravel(found.theta)}
    rows = losses.mask(rows)
    return params, {
        "policy_loss": -found.objective,
        "kl": found.kl,
        "entropy": losses.mean(losses.predict(policy, params, rows).entropy, rows.weight),
        "accepted": found.accepted.astype(jnp.float32),
        "trials": found.trials.astype(jnp.float32),
        "actor_grad_norm": jnp.linalg.norm(problem.gradient),
    }


def fit_critic(
    policy: Any,
    learner: LearnerState,
    rows: Batch,
    optimizer: optax.GradientTransformation,
    *,
    order: jax.Array,
    minibatches: int,
) -> tuple[LearnerState, Metrics]:
    """Fit the critic to its targets, ½ (V(s) − V_target)²; the actor is not changed.

    Args:
        policy: policy without a shared torso.
        learner: learner whose opt_state belongs to the critic's parameters.
        rows: Batch with leaves [M, ...].
        optimizer: optimiser of the critic.
        order: [K, M] order of the samples in each epoch, as for `sgd_epochs`.
        minibatches: number of minibatches per epoch.

    Returns:
        (LearnerState with the fitted critic, metrics).

    Source: Schulman et al. 2016, section 5 (by gradient descent in place of a trust region).
    """

    def loss_fn(critic: Params, rows: Batch) -> tuple[jax.Array, Metrics]:
        rows = losses.mask(rows)
        value = losses.predict(policy, {**learner.params, "critic": critic}, rows).value
        loss = losses.mean(losses.value_error(value, rows.target), rows.weight)
        return loss, {"value_loss": loss}

    critic = dataclasses.replace(learner, params=learner.params["critic"])
    critic, metrics = sgd.sgd_epochs(
        critic, rows, loss_fn, optimizer, order=order, minibatches=minibatches
    )
    params = {**learner.params, "critic": critic.params}
    return dataclasses.replace(critic, params=params), metrics


def make(
    policy: Any, config: Config, optimizer: optax.GradientTransformation | None = None
) -> Algorithm:
    """TRPO as three functions.

    Args:
        policy: policy without a shared torso.
        config: hyperparameters, a Config.
        optimizer: optax transformation that replaces the configured optimiser of the critic.

    Source: Schulman et al. 2015, section 6; with GAE and a fitted V as in Schulman et al. 2016.
    """
    optimizer, begin, end = sgd.from_config(config, optimizer)

    def init(key: jax.Array, obs: PyTree) -> LearnerState:
        params = policy.init(key, obs)
        if "torso" in params:
            raise ValueError(SHARED_TORSO)
        return dataclasses.replace(sgd.init(params["critic"], optimizer), params=params)

    def estimate(trajectory: Trajectory) -> Batch:
        return estimate_gae(trajectory, gamma=config.gamma, lambda_=config.gae_lambda)

    def update(key: jax.Array, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        learner, now = begin(learner, batch.weight.size)
        params, metrics = natural_step(policy, config, learner.params, batch)
        learner, fit = fit_critic(
            policy,
            dataclasses.replace(learner, params=params),
            batch,
            optimizer,
            order=sgd.shuffles(key, batch.weight.shape[0], config.critic_epochs),
            minibatches=config.critic_minibatches,
        )
        return end(learner, batch, now, metrics | fit)

    return Algorithm(init, estimate, update)
