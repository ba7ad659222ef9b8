"""Relative entropy pathwise policy optimisation, REPPO (Voelcker et al. 2025, arXiv:2507.11019)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ppo_jax import losses, sgd
from ppo_jax.algorithms.configs import REPPO as Config
from ppo_jax.algorithms.soft_values import on_unit_box, soft_targets
from ppo_jax.distributions import Categorical, DiagGaussian, JointCategorical, TanhGaussian
from ppo_jax.types import (
    Algorithm,
    Batch,
    LearnerState,
    LossFn,
    Metrics,
    Params,
    PyTree,
    Trajectory,
)
from ppo_jax.value_distributions import Predictive, value_of

DISCRETE = (Categorical, JointCategorical)
CONTINUOUS = (TanhGaussian, DiagGaussian)


class Next(NamedTuple):
    """The data of the auxiliary loss.

    Attributes:
        inputs: [...] inputs (s_{t+1}, a_{t+1}) of the critic; in an update, its features there.
        reward: [...] rewards r_t.
        known: [...] 1 where the next step of the rollout belongs to the same episode, else 0.
    """

    inputs: Any
    reward: jax.Array
    known: jax.Array


class Behaviour(NamedTuple):
    """The data of a sample besides its transition.

    Attributes:
        dist: π_old(·|s), the policy of the rollout.
        noise: [M, ...] random numbers from which the action of the pathwise gradient is computed.
        following: Next with leaves [M, ...]; () without the auxiliary loss.
    """

    dist: Any
    noise: jax.Array
    following: Any = ()


class Expected(NamedTuple):
    """Estimates of expectations over the actions of a policy.

    Attributes:
        value: [M] E[q(s, a)].
        entropy: [M] −E[log π(a|s)].
    """

    value: jax.Array
    entropy: jax.Array


def next_steps(trajectory: Trajectory) -> Next:
    """The data of the auxiliary loss, from a trajectory with leaves [T, N, ...].

    The last step of the rollout has no successor in it, and the successor of the last step of an
    episode belongs to another one; both are left out.
    """
    following = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), trajectory.obs)
    same = (1.0 - trajectory.done) * jnp.roll(trajectory.weight, -1, axis=0)
    return Next(following, trajectory.reward, same.at[-1].set(0.0))


def expected(policy: Any, params: Params, dist: Any, rows: Batch) -> Expected:
    """E[q(s, a)] and the entropy, as differentiable functions of a policy.

    For continuous actions both are computed from one sample a = f(π, ε) with the noise ε of the
    sample, so that the gradient passes through the action: ∇_θ q = ∇_a q ∇_θ a. For discrete
    actions they are the sums over all actions.

    Args:
        policy: policy whose `apply(params, StateAction)` returns (distribution, q).
        params: parameters of the critic, which receive no gradient.
        dist: distribution π(·|s) with batch shape [M], which receives the gradient.
        rows: Batch with leaves [M, ...] and extra `Behaviour`.

    Raises:
        ValueError: if the distribution has neither differentiable samples nor a single choice.

    Source: Voelcker et al. 2025, section 3; the discrete form is that of the authors'
    src/algorithms/reppo/learner.py.
    """
    params = jax.lax.stop_gradient(params)
    if isinstance(dist, CONTINUOUS):
        action = dist.sample_from(rows.extra.noise)
        value = value_of(policy.apply(params, rows.obs.replace(action=action))[1])
        return Expected(value, -on_unit_box(dist).log_prob(action))
    if not isinstance(dist, DISCRETE):
        raise ValueError(
            f"reppo needs a policy with differentiable samples ({_names(CONTINUOUS)}) or a single "
            f"discrete choice ({_names(DISCRETE)}), and its distribution is a "
            f"{type(dist).__name__}"
        )
    actions = dist.logits.shape[-1]
    each = jnp.broadcast_to(jnp.arange(actions), dist.logits.shape)
    one_state = jax.tree.map(lambda x: x[:, None], rows.obs.obs)
    values = value_of(policy.apply(params, rows.obs.replace(obs=one_state, action=each))[1])
    return Expected(jnp.sum(jax.nn.softmax(dist.logits) * values, axis=-1), dist.entropy())


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def bounded(
    objective: jax.Array, kl: jax.Array, coef: jax.Array | float, bound: jax.Array | float
) -> jax.Array:
    """The actor's loss: the objective within the bound, and only the KL divergence beyond it.

    −J  if KL[π_old, π] < bound,   β KL[π_old, π]  otherwise

    Args:
        objective: [M] objective J of each sample, to be maximised.
        kl: [M] divergences KL[π_old(·|s), π(·|s)], in nats.
        coef: [] coefficient β.
        bound: [] bound of the divergence.

    Returns:
        [M] losses.

    Source: Voelcker et al. 2025, section 3, the clipped objective.
    """
    return jnp.where(kl < bound, -objective, coef * kl)


def multiplier_loss(log_coef: jax.Array, violation: jax.Array) -> jax.Array:
    """The loss of a Lagrange multiplier: exp(log λ) · (−violation), with a constant violation.

    Gradient descent increases the multiplier while its constraint is violated (violation > 0) and
    decreases it otherwise; exp keeps it positive.

    Args:
        log_coef: [] logarithm of the multiplier λ.
        violation: [] amount by which the constraint is violated; negative if it holds.

    Source: Haarnoja et al. 2018, Soft Actor-Critic Algorithms and Applications, eq. 18.
    """
    return -jnp.exp(log_coef) * jax.lax.stop_gradient(violation)


def make_loss(policy: Any, config: Config) -> LossFn:
    """The loss of one minibatch.

    L = E[ bounded(q(s, a) + α H[π_θ(·|s)], KL[π_old, π_θ]) + L_Q(q(s_t, a_t), G_t) ]
        − α (H_target − H) − β (KL − KL_bound)

    In the first term, the parameters of q and α, β are constants; in the last two, H and KL are.

    Args:
        policy: policy whose `apply(params, StateAction)` returns (distribution, q).
        config: Config with the target of the entropy and the bound of the KL divergence.

    Returns:
        Function (params, Batch with leaves [M, ...] and extra `Behaviour`) -> (loss [], metrics).

    If `prediction_coef` is not None, the loss has a further term: that coefficient times the error
    of `Predictive`.

    Source: Voelcker et al. 2025, section 3.
    """

    def loss_fn(params: Params, rows: Batch) -> tuple[jax.Array, Metrics]:
        rows = losses.mask(rows)
        logs = params["multipliers"]
        alpha, beta = (jax.lax.stop_gradient(jnp.exp(logs[k])) for k in ("entropy", "kl"))
        dist, critic = policy.apply(params, rows.obs)
        new = expected(policy, params, dist, rows)
        kl = rows.extra.dist.kl(dist)
        terms = {
            "policy_loss": bounded(new.value + alpha * new.entropy, kl, beta, config.kl_bound),
            "value_loss": losses.value_error(_numbers(critic), rows.target),
        }
        if config.prediction_coef is not None:
            following = rows.extra.following
            error = following.known * critic.error(following.inputs, following.reward)
            terms["prediction_loss"] = config.prediction_coef * error
        clipped = kl >= config.kl_bound
        mean = losses.means(rows.weight, **terms, entropy=new.entropy, kl=kl, clip_fraction=clipped)
        dimensions = 1 if isinstance(dist, DISCRETE) else rows.action.shape[-1]
        low_entropy = config.target_entropy * dimensions - mean["entropy"]
        loss = sum(mean[name] for name in terms)
        loss += multiplier_loss(logs["entropy"], low_entropy)
        loss += multiplier_loss(logs["kl"], mean["kl"] - config.kl_bound)
        return loss, {"loss": loss, **mean, "entropy_coef": alpha, "kl_coef": beta}

    return loss_fn


def _features(policy: Any, params: Params, following: Any) -> Any:
    """The data of the auxiliary loss with the features of the critic in place of its inputs."""
    if not isinstance(following, Next):
        return following
    return following._replace(inputs=policy.apply(params, following.inputs)[1].features)


def _numbers(critic: Any) -> Any:
    """The values of a critic, without its predictions."""
    return critic.value if isinstance(critic, Predictive) else critic


def make(
    policy: Any, config: Config, optimizer: optax.GradientTransformation | None = None
) -> Algorithm:
    """REPPO as three functions; the parameters include the logarithms of both multipliers.

    Args:
        policy: policy whose critic is "q".
        config: hyperparameters, a Config.
        optimizer: optax transformation that replaces the configured optimiser.

    Source: Voelcker et al. 2025, algorithm 1.
    """
    if policy.critic != "q":
        raise ValueError(
            f"reppo requires critic 'q', but the critic of the policy is {policy.critic!r}"
        )
    optimizer, begin, end = sgd.from_config(config, optimizer)

    def init(key: jax.Array, obs: PyTree) -> LearnerState:
        starts = {"entropy": config.entropy_coef, "kl": config.kl_coef}
        logs = {name: jnp.log(jnp.asarray(x, jnp.float32)) for name, x in starts.items()}
        return sgd.init({**policy.init(key, obs), "multipliers": logs}, optimizer)

    def estimate(trajectory: Trajectory) -> Batch:
        batch = soft_targets(trajectory, gamma=config.gamma, lambda_=config.td_lambda)
        if config.prediction_coef is None:
            return batch
        return dataclasses.replace(batch, extra=next_steps(trajectory))

    def update(key: jax.Array, learner: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        learner, now = begin(learner, batch.weight.size)
        # π_old is computed rather than stored: the learner still has the behaviour parameters.
        old = policy.apply(learner.params, losses.mask(batch).obs)[0]
        following = _features(policy, learner.params, batch.extra)
        loss_fn = make_loss(policy, now)
        order_key, noise_key = jax.random.split(key)
        order = sgd.shuffles(order_key, batch.weight.shape[0], config.epochs)

        def epoch(learner: LearnerState, at: Any) -> tuple[LearnerState, Metrics]:
            order, key = at
            rows = dataclasses.replace(batch, extra=Behaviour(old, old.noise(key), following))
            return sgd.sgd_epochs(
                learner, rows, loss_fn, optimizer, order=order[None], minibatches=config.minibatches
            )

        keys = jax.random.split(noise_key, config.epochs)
        learner, metrics = jax.lax.scan(epoch, learner, (order, keys))
        return end(learner, batch, now, jax.tree.map(jnp.mean, metrics))

    return Algorithm(init, estimate, update)
