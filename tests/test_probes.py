"""Learning on problems with known solutions, which exposes wrong signs, masks or rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probe_envs
from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.networks import StateAction
from ppo_jax.train import build, make_train
from probe_envs import ALIKE, OneOfAlike

# REINFORCE has a value function only as its baseline, and needs the maximum episode length.
# Algorithms with one step per rollout get more rollouts and start with a narrow Gaussian: a wide
# one has its optimum far beyond the target, where the clipped action does not vary, and becomes
# narrow only with many steps per rollout.
NARROW = {"num_steps": 8, "log_std_init": -1.0}
OPTIONS = {
    "reinforce": {"baseline": "value", "time_limit": 5, "learning_rate": 1e-2} | NARROW,
    "actor_critic": {"learning_rate": 2e-2, "actor_rate": 0.3} | NARROW,
    "a2c": {"learning_rate": 1e-2} | NARROW,
    "trpo": {"max_kl": 0.05},
}
learners = pytest.mark.parametrize("algorithm", list(ALGORITHMS))


def options_of(algorithm):
    """Hyperparameters with which the algorithm learns on all probes."""
    options = {
        "num_envs": 8,
        "num_steps": 32,
        "hidden": (16,),
        "learning_rate": 5e-3,
        "gamma": 0.9,
    }
    return options | OPTIONS.get(algorithm, {})


def configured(algorithm, **changes):
    return configs.make(preset="none", algorithm=algorithm, **options_of(algorithm) | changes)


@functools.cache
def trained_on_one_of_alike(algorithm):
    """(configuration, state, metrics), the last two stacked over all probes."""
    config = configured(algorithm, total_timesteps=100_000)
    train = lambda place: make_train(config, OneOfAlike(place))(jax.random.key(0))
    return config, *jax.jit(jax.vmap(train))(jnp.arange(len(ALIKE)))


def learn(env, algorithm, **changes):
    """Train, and return a function obs -> (distribution, value of its mode)."""
    places = [i for i, probe in enumerate(ALIKE) if type(probe) is type(env)]
    if places and not changes:
        config, *trained = trained_on_one_of_alike(algorithm)
        state, metrics = jax.tree.map(lambda x: x[places[0]], trained)
    else:
        config = configured(algorithm, total_timesteps=40_000, **changes)
        state, metrics = jax.jit(make_train(config, env))(jax.random.key(0))
    assert metrics["reused_resets"].sum() == 0
    policy, params = build(config, env).policy, state.learner.params

    def judge(obs):
        obs = jnp.asarray(obs, jnp.float32)
        dist = policy.act(params, (), obs, jnp.zeros(len(obs), bool))[1]
        inputs = StateAction(obs, dist.mode()) if policy.critic == "q" else obs
        return dist, policy.apply(params, inputs)[1]

    return judge


@learners
def test_the_value_of_a_constant(algorithm):
    policy = learn(probe_envs.ConstantReward(), algorithm)
    np.testing.assert_allclose(policy([[0.0]])[1], [1.0], atol=0.05)


@learners
def test_the_value_depends_on_the_observation(algorithm):
    policy = learn(probe_envs.RewardIsObservation(), algorithm)
    np.testing.assert_allclose(policy([[1.0], [-1.0]])[1], [1.0, -1.0], atol=0.1)


@learners
def test_the_value_is_discounted(algorithm):
    policy = learn(probe_envs.DelayedReward(), algorithm)
    np.testing.assert_allclose(policy([[-1.0], [1.0]])[1], [0.9, 1.0], atol=0.05)


@learners
def test_the_better_action_is_found(algorithm):
    dist, value = learn(probe_envs.RewardIsAction(), algorithm)([[0.0]])
    assert np.exp(dist.log_prob(jnp.array([1])))[0] > 0.95
    np.testing.assert_allclose(value, [1.0], atol=0.1)


@learners
def test_the_action_depends_on_the_observation(algorithm):
    dist, value = learn(probe_envs.MatchObservation(), algorithm)([[1.0], [-1.0]])
    assert (np.exp(dist.log_prob(jnp.array([1, 0]))) > 0.95).all()
    np.testing.assert_allclose(value, [1.0, 1.0], atol=0.15)


@learners
def test_a_time_limit_does_not_end_the_future(algorithm):
    """Reward 1 in every step: V = 1 / (1 − 0.9) = 10, though episodes are truncated after 5 steps.

    REINFORCE is an exception, because it uses whole episodes: the mean of five rewards-to-go.
    """
    policy = learn(probe_envs.TimeLimit(), algorithm)
    to_go = np.cumsum(0.9 ** np.arange(5))
    expected = to_go.mean() if algorithm == "reinforce" else 10.0
    np.testing.assert_allclose(policy([[0.0]])[1], [expected], atol=0.3)


# Squashing belongs to the distribution; trpo also needs its KL, reppo its derivative. Both have
# faster tests, in test_distributions.py and test_reppo.py.
SQUASHED = ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("trpo", "reppo"))]


def finds_its_target(algorithm, squash):
    dist, _ = learn(probe_envs.Target(), algorithm, squash=squash)([[0.0]])
    np.testing.assert_allclose(dist.to_env(dist.mode()), [[0.5]], atol=0.1)


@learners
def test_a_continuous_action_finds_its_target(algorithm):
    finds_its_target(algorithm, squash=False)


@pytest.mark.parametrize("algorithm", SQUASHED)
def test_a_squashed_action_finds_its_target(algorithm):
    finds_its_target(algorithm, squash=True)
