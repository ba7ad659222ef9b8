"""Beta, state-dependent Gaussian and gSDE: densities, samples, heads, kept noise, and runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import ppo_jax
import probe_envs
from ppo_jax import agent, export, networks, rollout
from ppo_jax import config as configs
from ppo_jax.config import ConfigError
from ppo_jax.continuous import GSDE, Beta
from ppo_jax.distributions import DiagGaussian, TanhGaussian
from ppo_jax.envs import InvalidEnvironment, spaces
from ppo_jax.export import verify
from ppo_jax.sweep import run_seeds
from ppo_jax.train import build

KEY = jax.random.key(0)
LOW, HIGH = np.array([-3.0, 0.5], np.float32), np.array([1.0, 1.0], np.float32)
ALPHA, OF_BETA = np.array([1.3, 40.0], np.float32), np.array([2.5, 9.0], np.float32)
SMALL = {"num_envs": 4, "num_steps": 8, "total_timesteps": 64, "hidden": (8,), "minibatches": 2}


def a_beta(alpha=ALPHA, beta=OF_BETA, low=LOW, high=HIGH):
    return Beta(*(jnp.asarray(x, jnp.float32) for x in (alpha, beta, low, high)))


def one_beta(alpha, beta):
    return a_beta([alpha], [beta], [-3.0], [1.0])


# --- Beta -----------------------------------------------------------------------------------------


def test_the_density_of_a_beta_is_that_of_the_scaled_action():
    x = np.array([[0.2, 0.9], [0.7, 0.6]], np.float32)
    action = LOW + (HIGH - LOW) * x
    expected = stats.beta.logpdf(action, ALPHA, OF_BETA, loc=LOW, scale=HIGH - LOW).sum(-1)
    np.testing.assert_allclose(a_beta().log_prob(jnp.asarray(x)), expected, rtol=1e-5)
    np.testing.assert_allclose(a_beta().to_env(jnp.asarray(x)), action, rtol=1e-6)


def test_the_density_of_a_beta_integrates_to_one_over_the_bounds():
    dist = one_beta(1.5, 3.0)
    density = jax.jit(lambda a: jnp.exp(dist.log_prob(((a + 3.0) / 4.0)[None])))
    assert integrate.quad(density, -3.0, 1.0, epsabs=1e-5)[0] == pytest.approx(1.0, abs=1e-4)


def test_entropy_and_divergence_of_a_beta():
    expected = stats.beta.entropy(ALPHA, OF_BETA, scale=HIGH - LOW).sum()
    assert a_beta().entropy() == pytest.approx(expected, abs=5e-5)
    # H[Beta(2, 2)] = log(1/6) + 5/3 = −0.1250928; its divergence from the uniform one is −H.
    two, uniform = one_beta(2.0, 2.0), one_beta(1.0, 1.0)
    assert two.entropy() == pytest.approx(-0.1250928 + np.log(4.0), abs=5e-6)
    assert two.kl(uniform) == pytest.approx(0.1250928, abs=5e-6)
    p, q = stats.beta(1.3, 2.5), stats.beta(3.0, 1.7)
    by_numbers = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), 0, 1)[0]
    assert one_beta(1.3, 2.5).kl(one_beta(3.0, 1.7)) == pytest.approx(by_numbers, rel=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 7.9, 8.1, 300.0, 1e4])
def test_a_concentrated_beta_is_exact_in_float32(alpha):
    beta = 0.4 * alpha + 0.6
    x = np.float32(alpha / (alpha + beta)) + np.float32(1e-3)
    expected = stats.beta.logpdf(float(x), np.float32(alpha), np.float32(beta)) - np.log(4.0)
    dist = one_beta(alpha, beta)
    assert dist.log_prob(jnp.asarray([x])) == pytest.approx(expected, abs=1e-4 + 2e-7 * alpha)
    near = one_beta(alpha * 1.01, beta)
    assert 0 <= dist.kl(near) < 1e-4 * alpha
    both = jax.grad(lambda a: near.replace(alpha=a).log_prob(jnp.asarray([x])))(near.alpha)
    assert np.isfinite(both).all()


def test_samples_of_a_beta_have_its_mean_and_finite_densities():
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (4000, 2)), a_beta())
    drawn = many.sample(KEY)
    np.testing.assert_allclose(drawn.mean(0), ALPHA / (ALPHA + OF_BETA), atol=0.01)
    np.testing.assert_array_equal(drawn, many.sample_from(many.noise(KEY)))
    assert many.noise(KEY, (3,)).shape == (3, 4000, 2, 2, 6, 2)
    for i in range(2):
        assert stats.kstest(drawn[:, i], stats.beta(ALPHA[i], OF_BETA[i]).cdf).pvalue > 1e-3
    edge = jax.tree.map(lambda x: jnp.broadcast_to(x, (64, 1)), one_beta(1e6, 1.0))
    assert edge.sample(KEY).max() > 0.99999
    assert np.isfinite(edge.log_prob(edge.sample(KEY))).all()
    taken = edge.to_env(edge.sample(KEY))
    assert (taken <= 1.0).all() and (taken >= -3.0).all()


def test_the_mode_of_a_beta_has_the_largest_density():
    grid = jnp.linspace(0.001, 0.999, 999)[:, None]
    dist = one_beta(1.3, 2.5)
    np.testing.assert_allclose(dist.mode(), grid[jnp.argmax(dist.log_prob(grid))], atol=1e-3)
    np.testing.assert_allclose(one_beta(1.0, 1.0).mode(), [0.5])


# --- generalised state-dependent exploration ------------------------------------------------------

FEATURES, SCALE = jnp.array([2.0, 1.0]), jnp.array([[0.5, 0.1], [1.0, 0.3]])


def a_gsde(base=DiagGaussian, *bounds):
    # σ̂² = (4 · 0.25 + 1 · 1, 4 · 0.01 + 1 · 0.09) = (2, 0.13)
    gaussian = base(jnp.array([0.3, -1.0]), 0.5 * jnp.log(jnp.array([2.0, 0.13])), *bounds)
    return GSDE(gaussian, FEATURES, SCALE, 4)


def test_the_log_probability_of_gsde_is_that_of_the_explicit_gaussian():
    """u is a linear function of the noise: u = μ + J ε with covariance J Jᵀ."""
    dist, zeros = a_gsde(), jnp.zeros((2, 2))
    mean = dist.sample_from(zeros)
    slope = jax.jacobian(dist.sample_from)(zeros).reshape(2, 4)
    explicit = stats.multivariate_normal(mean, slope @ slope.T)
    action = jnp.array([1.7, -0.8])
    assert dist.log_prob(action) == pytest.approx(explicit.logpdf(action), rel=1e-5)
    assert dist.entropy() == pytest.approx(explicit.entropy(), rel=1e-5)
    np.testing.assert_allclose(slope @ slope.T, np.diag([2.0, 0.13]), rtol=1e-5)
    moved = a_gsde().replace(base=DiagGaussian(mean + 0.5, dist.base.log_std + 0.1))
    assert dist.kl(moved) == pytest.approx(float(dist.base.kl(moved.base)))
    np.testing.assert_array_equal(dist.mode(), mean)


def test_gsde_can_be_squashed():
    low, high = jnp.array([-1.0, 0.0]), jnp.array([2.0, 1.0])
    dist = a_gsde(TanhGaussian, low, high)
    drawn = dist.sample(KEY)
    np.testing.assert_array_equal(dist.to_env(drawn), dist.base.to_env(drawn))
    assert dist.log_prob(drawn) == dist.base.log_prob(drawn)


# --- the heads ------------------------------------------------------------------------------------


def head_of(kind, space=None, **options):
    space = space or spaces.Box(LOW, HIGH, (2,))
    policy = networks.make_policy(
        spaces.Box(-1.0, 1.0, (3,)), space, action_distribution=kind, **options
    )
    obs = jax.random.normal(KEY, (5, 3))
    params = policy.init(KEY, obs)
    return policy, params, policy.apply(params, obs)[0]


def test_the_initial_heads_do_not_depend_on_the_state():
    _, params, state = head_of("state_gaussian", log_std_init=-1.0)
    np.testing.assert_allclose(state.log_std, np.full((5, 2), -1.0), atol=0.05)
    assert set(params["actor"]) >= {"head", "log_std"}
    _, _, beta = head_of("beta")
    np.testing.assert_allclose(beta.alpha, np.full((5, 2), 1 + np.log(2.0)), atol=0.05)
    np.testing.assert_allclose(beta.to_env(beta.mode()), [[-1.0, 0.75]] * 5, atol=0.05)
    _, _, wide = head_of("state_gaussian", log_std_init=-1.0, squash=True)
    assert isinstance(wide, TanhGaussian)


def test_the_standard_deviation_of_a_state_stays_in_its_range():
    policy, params, _ = head_of("state_gaussian", log_std_init=-1.0)
    params["actor"]["log_std"]["bias"] += jnp.array([1e4, -1e4])
    found = policy.apply(params, jnp.zeros((1, 3)))[0].log_std
    np.testing.assert_allclose(found, [[4.0, -6.0]])
    changed = policy.apply(params, jnp.ones((1, 3)))[0]
    assert isinstance(changed, DiagGaussian)


def test_the_standard_deviation_of_gsde_follows_from_the_features():
    policy, params, dist = head_of("gsde", log_std_init=-1.0, hidden=(7,))
    assert dist.features.shape == (5, 8) and dist.scale.shape == (5, 8, 2)
    assert policy.init_noise(3).shape == (3, 8, 2)
    z = np.asarray(dist.features[:, :7])
    by_hand = np.exp(-2.0) / 7 * np.square(z).sum(1, keepdims=True) + 1e-6
    np.testing.assert_allclose(np.exp(2 * dist.base.log_std), by_hand.repeat(2, 1), rtol=1e-4)

    def total(params):
        return jnp.sum(policy.apply(params, jnp.ones((1, 3)))[0].base.log_std)

    slope = jax.grad(total)(params)["actor"]
    assert not np.any(slope["body"]["Dense_0"]["kernel"]) and np.all(slope["log_std"])
    silent = jax.tree.map(jnp.zeros_like, params)
    assert np.isfinite(policy.apply(silent, jnp.ones((1, 3)))[0].base.log_std).all()


def test_other_distributions_need_no_kept_noise():
    assert head_of("gaussian")[0].init_noise(3) == ()
    discrete = networks.make_policy(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2))
    assert discrete.init_noise(3) == ()


class Still(probe_envs.Probe):
    """Episodes of 5 steps with the observation 1 and two actions, so that only noise varies."""

    def __init__(self):
        box = spaces.Box(-9.0, 9.0, (2,))
        super().__init__(action_space=box, time_limit=5, shortest_episode=5)

    def reset(self, key, params):
        return jnp.ones(1), jnp.int32(0)

    def step(self, key, state, action, params):
        return jnp.ones(1), state + 1, jnp.float32(0), jnp.array(False), state == 4, {}


def test_the_noise_of_gsde_is_kept_over_rollouts():
    options = SMALL | {"num_steps": 6, "num_envs": 2}
    config = configs.make(preset="none", action_distribution="gsde", noise_steps=4, **options)
    program = build(config, Still())
    state = program.init(KEY)
    collect = rollout.Collector(program.vector_env, program.policy, 6, 0.9)

    @jax.jit
    def two(state):
        first, a = collect(KEY, state.learner.params, state.rollout)
        second, b = collect(jax.random.key(1), state.learner.params, first)
        return second, jnp.concatenate([a.action, b.action])

    after, action = two(state)
    new = np.abs(np.diff(np.asarray(action), axis=0)).max(axis=(1, 2)) > 1e-4
    # Steps 0-3, 4-7 and 8-11 have one noise matrix each, and the second rollout begins at step 6.
    np.testing.assert_array_equal(np.flatnonzero(new) + 1, [4, 8])
    assert after.noise.age.tolist() == [0, 0]
    assert np.abs(action[0, 0] - action[0, 1]).max() > 1e-4  # each environment has its own
    fresh = rollout.restart(KEY, after, env=program.vector_env, policy=program.policy)
    assert fresh.noise.age.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("values", "env", "error", "message"),
    [
        ({"action_distribution": "normal"}, None, ConfigError, "'normal'; it must be one of gauss"),
        ({"action_distribution": "beta", "squash": True}, None, ConfigError, "no effect on .*beta"),
        ({"noise_steps": 8}, None, ConfigError, "noise_steps is 8, but action_distribution gauss"),
        (
            {"action_distribution": "beta", "rpo_alpha": 0.5},
            None,
            ConfigError,
            "RPO perturbs the mean of a Gaussian, and action_distribution is beta",
        ),
        (
            {"action_distribution": "gsde", "noise_steps": 0},
            None,
            ConfigError,
            "noise_steps is 0; it must be >= 1",
        ),
        (
            {"action_distribution": "gsde"},
            probe_envs.ConstantReward(),
            InvalidEnvironment,
            "gsde requires a Box action space, but ConstantReward has Discrete",
        ),
        (
            {"action_distribution": "beta"},
            probe_envs.ConstantReward(action_space=spaces.Box(-np.inf, 1.0, (1,))),
            InvalidEnvironment,
            "beta requires finite bounds, but ConstantReward has",
        ),
        (
            {"action_distribution": "gsde", "hidden": ()},
            probe_envs.Target(),
            ConfigError,
            "gsde needs a hidden layer",
        ),
    ],
)
def test_what_has_no_effect_is_refused(values, env, error, message):
    with pytest.raises(error, match=message):
        build(configs.make(preset="none", **SMALL | values), env)


# --- runs -----------------------------------------------------------------------------------------

HEADS = {
    "state_gaussian": {"action_distribution": "state_gaussian"},
    "beta": {"action_distribution": "beta"},
    "gsde": {"action_distribution": "gsde", "noise_steps": 3},
    "gsde, squashed": {"action_distribution": "gsde", "squash": True},
    "gsde, recurrent": {"action_distribution": "gsde", "memory": "gru", "memory_size": 8},
}


class SeenTarget(probe_envs.Target):
    """The target with an observation of 1: the noise of gSDE is 0 where all features are 0."""

    def reset(self, key, params):
        return jnp.ones(1), jnp.zeros(())

    def step(self, key, state, action, params):
        return (jnp.ones(1), *super().step(key, state, action, params)[1:])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "trpo", "ppo_kl"])
@pytest.mark.parametrize("head", ["state_gaussian", "beta", "gsde"])
def test_every_head_finds_its_target(algorithm, head):
    config = configs.make(
        preset="none", algorithm=algorithm, num_envs=16, num_steps=16, total_timesteps=40_000,
        hidden=(32,), gamma=0.9, **HEADS[head],
        **{} if algorithm == "trpo" else {"learning_rate": 5e-3},
    )  # fmt: skip
    program = build(config, SeenTarget())
    step, state = jax.jit(program.step), program.init(KEY)
    for _ in range(config.num_updates):
        state, _ = step(state)
    dist = program.policy.apply(state.learner.params, jnp.ones((1, 1)))[0]
    np.testing.assert_allclose(dist.to_env(dist.mode()), [[0.5]], atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_runs_are_resumed_loaded_and_exported(tmp_path, name):
    options = {"env": "Pendulum-v1", "preset": "none", **SMALL, **HEADS[name]}
    whole = ppo_jax.run(configs.make(**options), tmp_path / "whole", eval_episodes=0)
    half = configs.make(**options | {"total_timesteps": 32, "anneal_timesteps": 64.0})
    ppo_jax.run(half, tmp_path / "half", eval_episodes=0)
    more = dataclasses.replace(half, total_timesteps=64)
    ppo_jax.run(more, resume=tmp_path / "half")
    obs = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    actions = [ppo_jax.load(tmp_path / run)(obs) for run in ("whole", "half")]
    np.testing.assert_array_equal(*actions)
    assert whole.exit_code == 0 and np.abs(actions[0]).max() <= 2.0
    drawn = ppo_jax.load(tmp_path / "whole", greedy=False)(obs)
    assert np.abs(drawn).max() <= 2.0 and (drawn != actions[0]).any()
    if "memory" not in HEADS[name]:
        pytest.importorskip("flatbuffers")
        found = export.export(tmp_path / "whole", "stablehlo", tmp_path / "a.stablehlo")
        assert found.max_difference < 1e-5


@pytest.mark.peers
@pytest.mark.parametrize("name", ["state_gaussian", "beta", "gsde"])
def test_onnx_acts_like_the_run(tmp_path, name):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    config = configs.make(env="Pendulum-v1", preset="none", **SMALL, **HEADS[name])
    program = build(config)
    parts = agent.parts_of(config, program, jax.jit(program.init)(KEY))
    export.onnx.write(parts, tmp_path / "a.onnx")
    assert verify.compare(parts, "onnx", tmp_path / "a.onnx")[1] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state_gaussian", "beta", "gsde"])
def test_seeds_in_one_program_are_those_of_single_runs(name):
    config = configs.make(env="Pendulum-v1", preset="none", **SMALL, **HEADS[name])
    _, metrics = run_seeds(config, [3, 4])
    _, alone = run_seeds(config, [4])
    np.testing.assert_allclose(metrics["loss"][1], alone["loss"][0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_kept_noise_of_several_parts():
    config = configs.make(env="Pendulum-v1", preset="none", parts=2, **SMALL, **HEADS["gsde"])
    program = build(config)
    state = jax.jit(program.init)(KEY)
    assert state.rollout.noise.value.shape == (2, 2, 9, 1)
    state, metrics = jax.jit(program.step)(state)
    assert np.isfinite(metrics["loss"])
    assert len(np.unique(state.rollout.noise.value)) == 2 * 2 * 9
