"""REPPO: targets with entropy, the pathwise gradient, the bound of the KL and the multipliers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probe_envs
from ppo_jax import config as configs
from ppo_jax import rollout, sgd
from ppo_jax.algorithms import reppo, soft_values
from ppo_jax.config import ConfigError
from ppo_jax.distributions import Bernoulli, TanhGaussian
from ppo_jax.envs import spaces, vectorize
from ppo_jax.networks import StateAction, ValueHead, make_policy
from ppo_jax.types import Trajectory
from ppo_jax.value_distributions import Predictive, value_of

BOX = spaces.Box(-np.inf, np.inf, (3,))
BOUNDED = spaces.Box(-1.0, 1.0, (2,))
HEAD = ValueHead("hl_gauss", 21, -5.0, 5.0)


def column(*values, dtype=float):
    return jnp.array(values, dtype)[:, None]


def five_steps():
    """Steps 0 and 1 go on, 2 is truncated, 3 is terminated, 4 is the last of the rollout."""
    bonus = column(0.5, 0.1, 0.2, 0.3, 0.4)
    ones = jnp.ones((5, 1))
    return Trajectory(
        obs=StateAction(jnp.arange(5.0)[:, None, None], jnp.zeros((5, 1, 1))),
        action=jnp.zeros((5, 1, 1)),
        log_prob=0 * ones,
        value=7.0 + bonus,
        next_value=column(50.0, 10.0, 20.0, 30.0, 40.0),
        reward=column(5.0, 1.0, 2.0, 3.0, 4.0),
        terminated=column(False, False, False, True, False, dtype=bool),
        done=column(False, False, True, True, False, dtype=bool),
        weight=ones,
        extra=bonus,
    )


def test_targets_are_those_of_the_formula():
    """γ = 0.5, λ = 0.8: G_0 = 5 + 0.5 (0.2 · 50 + 0.8 (G_1 + 0.1)), and so on."""
    batch = soft_values.soft_targets(five_steps(), gamma=0.5, lambda_=0.8)
    g1 = 1 + 0.5 * (0.2 * 10 + 0.8 * (12 + 0.2))
    expected = [5 + 0.5 * (0.2 * 50 + 0.8 * (g1 + 0.1)), g1, 2 + 0.5 * 20, 3, 4 + 0.5 * 40]
    np.testing.assert_allclose(batch.target[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(batch.value, 7.0, rtol=1e-6)
    np.testing.assert_allclose(batch.advantage, batch.target - 7.0, rtol=1e-5)


def test_a_step_of_weight_0_changes_no_target():
    """A dummy step with infinite contents between the truncation and the next episode."""
    before = five_steps()

    def widened(x):
        dummy = jnp.full_like(x[:1], jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else 0)
        return jnp.concatenate([x[:3], dummy, x[3:]])

    wide = jax.tree.map(widened, before)
    wide = dataclasses.replace(wide, weight=column(1.0, 1.0, 1.0, 0.0, 1.0, 1.0))
    # The dummy step leads to the state in which the next episode begins, whose value is finite.
    wide = dataclasses.replace(wide, next_value=wide.next_value.at[3].set(8.0))
    targets = soft_values.soft_targets(wide, gamma=0.5, lambda_=0.8).target
    expected = soft_values.soft_targets(before, gamma=0.5, lambda_=0.8).target
    np.testing.assert_allclose(jnp.delete(targets, 3, axis=0), expected, rtol=1e-6)
    assert targets[3] == 0


def test_the_rollout_adds_the_entropy_to_q():
    """value = q(s, a) − α log π(a|s), and the same for the next step with a' ~ π; where a time
    limit truncated the episode, the next state is the true final one."""
    counter = probe_envs.Counter()
    env = vectorize(counter, 4, 32)
    policy = make_policy(env.observation_space, spaces.Discrete(2), hidden=(8,), critic="q")
    state = rollout.init(jax.random.key(0), policy, env)
    params = policy.init(jax.random.key(1), state.obs)
    params["actor"]["head"]["kernel"] *= 100.0
    params["multipliers"] = {"entropy": jnp.log(3.0), "kl": jnp.array(0.0)}
    collect = soft_values.with_entropy(rollout.Collector(env, policy, 32, 0.9))
    end, trajectory = jax.jit(collect)(jax.random.key(2), params, state)

    def soft(obs, action):
        action = jnp.broadcast_to(action, obs.shape[:-1])
        dist, q = policy.apply(params, StateAction(obs, action))
        return q - 3.0 * dist.log_prob(action), -3.0 * dist.log_prob(action)

    obs = trajectory.obs.obs
    value, bonus = soft(obs, trajectory.action)
    np.testing.assert_allclose(trajectory.value, value, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(trajectory.extra, bonus, rtol=1e-4, atol=1e-5)
    truncated = np.asarray(trajectory.done & ~trajectory.terminated)
    following = jnp.concatenate([obs[1:], end.obs[None]])
    following = jnp.where(truncated[..., None], counter.successor(obs), following)
    options = np.stack([soft(following, 0)[0], soft(following, 1)[0]])
    gap = np.abs(options - np.asarray(trajectory.next_value)).min(axis=0)
    assert truncated.any() and (gap[~np.asarray(trajectory.terminated)] < 1e-3).all()


def test_the_entropy_does_not_depend_on_the_unit_of_the_action():
    params = {"multipliers": {"entropy": jnp.log(0.5)}}
    shape = jnp.ones((4, 2))
    found = [
        soft_values.entropy_bonus(params, TanhGaussian(0.3 * shape, -shape, low, -low), 0.2 * shape)
        for low in (-shape, -7.0 * shape)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    unscaled = TanhGaussian(0.3 * shape, -shape, -shape, shape).log_prob(0.2 * shape)
    np.testing.assert_allclose(found[0], -0.5 * unscaled, rtol=1e-6)


def setting(actions, **options):
    """(config, policy, params, rows): 16 samples, whose π_old differs a little from the policy."""
    config = reppo.Config(**options)
    head = HEAD._replace(predicts=config.self_prediction)
    squash = isinstance(actions, spaces.Box)
    policy = make_policy(BOX, actions, hidden=(8,), critic="q", squash=squash, value_head=head)

    def draw(key):
        keys = iter(jax.random.split(key, 30))
        obs = jax.random.normal(next(keys), (16, 3))
        start = jnp.zeros(16, bool)
        first = reppo.make(policy, config).init(next(keys), obs).params
        shaken = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), first)
        params = {**shaken, "multipliers": first["multipliers"]}
        action = policy.act(params, (), obs, start)[1].sample(next(keys))
        other = jax.tree.map(lambda x: 1.05 * x, params)
        old = policy.act(other, (), obs, start)[1]
        following = reppo.Next(jnp.ones((16, 8)), obs[:, 0], jnp.ones(16))
        extra = reppo.Behaviour(old, old.noise(next(keys)), following)
        nothing, weight = jnp.zeros(16), jnp.ones(16)
        inputs = StateAction(obs, action)
        batch = reppo.Batch(inputs, action, nothing, nothing, nothing, obs[:, 0], weight, extra)
        return params, batch

    return config, policy, *jax.jit(draw)(jax.random.key(0))


def differentiated(config, policy, params, rows):
    """(loss, metrics, gradient) of the loss."""
    loss_fn = jax.value_and_grad(reppo.make_loss(policy, config), has_aux=True)
    (loss, metrics), grads = jax.jit(loss_fn)(params, rows)
    return loss, metrics, grads


def test_the_gradient_of_the_actor_is_that_of_finite_differences():
    """J(θ) = mean q(s, a_θ(ε)) + α H, with the gradient through the action and none into q."""
    config, policy, params, rows = setting(BOUNDED, kl_bound=1e6, entropy_coef=0.3)

    @jax.jit
    def objective(actor):
        new = {**params, "actor": actor}
        dist = policy.apply(new, rows.obs)[0]
        action = dist.sample_from(rows.extra.noise)
        q = value_of(policy.apply(params, StateAction(rows.obs.obs, action))[1])
        return jnp.mean(q - 0.3 * dist.log_prob(action))

    grads = differentiated(config, policy, params, rows)[2]
    directions = [
        jax.tree.map(lambda x, i=i: jax.random.normal(jax.random.key(i), x.shape), params["actor"])
        for i in range(2)
    ]
    for direction in directions:
        ahead, behind = (
            objective(jax.tree.map(lambda x, d, e=e: x + e * d, params["actor"], direction))
            for e in (3e-3, -3e-3)
        )
        slope = sum(
            jnp.vdot(g, d)
            for g, d in zip(
                jax.tree.leaves(grads["actor"]), jax.tree.leaves(direction), strict=True
            )
        )
        np.testing.assert_allclose(-slope, (ahead - behind) / 6e-3, rtol=2e-2, atol=2e-3)


def test_the_gradient_of_the_critic_is_that_of_its_own_loss():
    config, policy, params, rows = setting(BOUNDED)

    def critic_loss(params):
        return jnp.mean(policy.apply(params, rows.obs)[1].error(rows.target))

    expected = jax.jit(jax.grad(critic_loss))(params)["critic"]
    found = differentiated(config, policy, params, rows)[2]["critic"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, expected
    )


def test_beyond_the_bound_only_the_divergence_counts():
    found = reppo.bounded(jnp.array([1.0, 2.0]), jnp.array([0.05, 0.2]), 3.0, 0.1)
    np.testing.assert_allclose(found, [-1.0, 0.6], rtol=1e-6)
    config, policy, params, rows = setting(BOUNDED, kl_bound=1e-9, kl_coef=2.0)
    _, metrics, _ = differentiated(config, policy, params, rows)
    assert metrics["clip_fraction"] == 1 and metrics["kl"] > 1e-4
    np.testing.assert_allclose(metrics["policy_loss"], 2.0 * metrics["kl"], rtol=1e-5)


@pytest.mark.parametrize("violated", [True, False])
def test_multipliers_grow_where_their_constraint_is_violated(violated):
    limits = {"target_entropy": 50.0, "kl_bound": 1e-6} if violated else {"target_entropy": -50.0}
    config, policy, params, rows = setting(BOUNDED, **limits)
    _, metrics, grads = differentiated(config, policy, params, rows)
    grads = grads["multipliers"]
    # d/d log α of α (H − H_target), and of −β (KL − bound)
    entropy = config.entropy_coef * (metrics["entropy"] - 2 * config.target_entropy)
    kl = -config.kl_coef * (metrics["kl"] - config.kl_bound)
    np.testing.assert_allclose(grads["entropy"], entropy, rtol=1e-5)
    np.testing.assert_allclose(grads["kl"], kl, rtol=1e-4)
    assert (grads["entropy"] < 0, grads["kl"] < 0) == (violated, violated)


def test_q_takes_the_squashed_action():
    _, policy, params, rows = setting(BOUNDED)
    plain = make_policy(BOX, BOUNDED, hidden=(8,), critic="q", value_head=HEAD)
    found = policy.apply(params, rows.obs)[1].mean()
    squashed = StateAction(rows.obs.obs, jnp.tanh(rows.action))
    np.testing.assert_allclose(found, plain.apply(params, squashed)[1].mean(), rtol=1e-6)


def test_every_q_function_may_have_classes():
    """Shapes alone: the rollout takes the means of the classes, the loss the classes."""
    from ppo_jax.train import build

    for algorithm in ("actor_critic", "reppo"):
        options = {"num_envs": 4, "num_steps": 8, "total_timesteps": 64, "value_head": "hl_gauss"}
        program = build(configs.make(preset="none", algorithm=algorithm, **options))
        state = jax.eval_shape(program.init, jax.random.key(0))
        assert state.learner.params["critic"]["head"]["kernel"].shape == (64, 2 * 51)
        jax.eval_shape(program.step, state)


def test_discrete_actions_are_summed():
    config, policy, params, rows = setting(spaces.Discrete(3), kl_bound=1e6, entropy_coef=0.2)
    dist, _ = policy.apply(params, rows.obs)
    each = [
        policy.apply(params, StateAction(rows.obs.obs, jnp.full(16, a)))[1].mean() for a in range(3)
    ]
    q, p = jnp.stack(each, axis=-1), jax.nn.softmax(dist.logits)
    expected = jnp.sum(p * (q - 0.2 * jnp.log(p)), axis=-1)
    _, metrics, _ = differentiated(config, policy, params, rows)
    np.testing.assert_allclose(metrics["policy_loss"], -jnp.mean(expected), rtol=1e-4)


def test_the_auxiliary_loss_is_that_of_the_next_features_and_the_reward():
    critic = Predictive(jnp.zeros(1), jnp.zeros((1, 2)), jnp.array([[1.0, 2.0, 3.0]]))
    found = critic.error(jnp.array([[1.0, 4.0]]), jnp.array([2.0]))
    np.testing.assert_allclose(found, [(0 + 4 + 1) / 3], rtol=1e-6)
    config, policy, params, rows = setting(BOUNDED, prediction_coef=0.5)
    loss, metrics, _ = differentiated(config, policy, params, rows)
    critic = policy.apply(params, rows.obs)[1]
    error = 0.5 * jnp.mean(critic.error(rows.extra.following.inputs, rows.extra.following.reward))
    np.testing.assert_allclose(metrics["prediction_loss"], error, rtol=1e-5)
    without = dataclasses.replace(config, prediction_coef=0.0)
    less = differentiated(without, policy, params, rows)[0]
    np.testing.assert_allclose(loss - less, error, rtol=1e-4)


def test_the_last_step_of_an_episode_and_of_the_rollout_have_no_next_features():
    found = reppo.next_steps(five_steps())
    np.testing.assert_array_equal(found.known[:, 0], [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(found.inputs.obs[:2, 0, 0], [1, 2])


SMALL = {"num_envs": 4, "num_steps": 8, "total_timesteps": 64, "hidden": (8,), "minibatches": 2}


def small(**options):
    return configs.make(preset="none", env="Pendulum-v1", algorithm="reppo", **SMALL | options)


@pytest.mark.parametrize(
    ("env", "message"),
    [(probe_envs.MatchBits(), "MultiBinary"), (probe_envs.Choices(), "MultiDiscrete")],
)
def test_several_discrete_choices_are_refused(env, message):
    from ppo_jax.train import build

    with pytest.raises(ConfigError, match=f"{message}.*such as ppo"):
        build(small(), env)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "gru"}, "critic of reppo is a Q-function, which cannot be recurrent"),
        ({"shared_torso": True}, "critic of reppo is a Q-function, which cannot share"),
        ({"action_distribution": "beta"}, "use gaussian or state_gaussian"),
        ({"optimizer": "muon", "adam_reset": True}, "adam_reset restarts the bias correction"),
        ({"minibatches": 7}, "does not divide into 7 minibatches"),
        ({"kl_coef": 0.0}, "kl_coef is 0.0; it must be > 0"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_a_policy_without_differentiable_samples_is_refused():
    with pytest.raises(ValueError, match="requires critic 'q'"):
        reppo.make(make_policy(BOX, BOUNDED), reppo.Config())
    with pytest.raises(ValueError, match="its distribution is a Bernoulli"):
        reppo.expected(None, {}, Bernoulli(jnp.zeros((2, 2))), None)


def test_an_update_changes_every_parameter_with_new_noise_in_each_epoch(monkeypatch):
    """With the same noise in each epoch, the actor would fit the noise."""
    seen = []
    inner = sgd.sgd_epochs

    def spy(learner, rows, *args, **options):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), rows.extra.noise)
        return inner(learner, rows, *args, **options)

    monkeypatch.setattr(sgd, "sgd_epochs", spy)
    config, policy, params, rows = setting(BOUNDED, prediction_coef=1.0, epochs=2, minibatches=2)
    algorithm = reppo.make(policy, config)
    learner = sgd.init(params, sgd.make_optimizer())
    batch = dataclasses.replace(
        rows, extra=reppo.Next(rows.obs, rows.target, jnp.ones(16)), advantage=rows.target
    )
    after, metrics = jax.jit(algorithm.update)(jax.random.key(5), learner, batch)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), params, after.params)
    assert all(jax.tree.leaves(moved)) and "predictor" in after.params["critic"]
    assert all(np.isfinite(x) for x in metrics.values()) and metrics["prediction_loss"] > 0
    jax.effects_barrier()
    assert len(seen) == 2 and not np.array_equal(*seen)


@pytest.mark.slow
def test_pendulum_is_learned():
    """Four seeds of the preset; their returns were −180 to −152 (benchmarks/results/reppo.csv)."""
    from ppo_jax.sweep import run_sweep

    config = configs.make(preset="pendulum_reppo", total_timesteps=150_000)
    _, metrics = run_sweep(config, [{}], 4, episodes=32)
    assert (metrics["eval_return"][0].mean(axis=-1) >= -220).all()
