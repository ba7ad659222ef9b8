"""Evaluation plays whole episodes, by the policy that was trained, and draws them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ppo_jax import envs, evaluate, normalization, rollout
from ppo_jax.networks import make_policy
from probe_envs import Counter, MatchObservation, TimeLimit

KEY = jax.random.key(0)
NOTHING = rollout.Moments()


def agent(env, **options):
    policy = make_policy(env.observation_space, env.action_space, hidden=(8,), **options)
    obs, _ = env.reset(KEY, env.params)
    return policy, policy.init(KEY, jax.tree.map(lambda x: x[None], obs))


def test_returns_and_lengths_are_those_of_whole_episodes():
    """Counter's length is 3 + id % 4, and its return follows."""
    env = Counter()
    policy, params = agent(env)
    result = evaluate.evaluate(KEY, params, NOTHING, env=env, policy=policy, episodes=64)
    _, reset_key = jax.random.split(KEY)
    names = np.asarray(jax.vmap(lambda k: env.reset(k, ())[1][0])(jax.random.split(reset_key, 64)))
    length = 3 + names % 4
    np.testing.assert_array_equal(result.episode_length, length)
    expected = length * (names % 1000) + length * (length + 1) / 2
    np.testing.assert_allclose(result.episode_return, expected)
    assert result.finished.all()


def test_an_episode_is_cut_at_the_limit():
    policy, params = agent(TimeLimit())
    options = {"env": TimeLimit(), "policy": policy, "episodes": 3}
    assert (evaluate.evaluate(KEY, params, NOTHING, **options).episode_length == 5).all()
    cut = evaluate.evaluate(KEY, params, NOTHING, **options, max_steps=2)
    assert (cut.episode_length == 2).all() and not cut.finished.any()


def test_environments_need_no_hash():
    class Unhashable(TimeLimit):
        __hash__ = None

    policy, params = agent(Unhashable())
    env = Unhashable()
    result = evaluate.evaluate(KEY, params, NOTHING, env=env, policy=policy, episodes=2)
    assert (result.episode_length == 5).all()


def test_greedy_takes_the_mode_and_stochastic_samples():
    env = MatchObservation()
    policy, params = agent(env)
    # Slightly better than chance: the mode is always right, a sample only mostly.
    params["actor"]["head"]["kernel"] = jnp.zeros_like(params["actor"]["head"]["kernel"])
    params["actor"]["body"]["Dense_0"]["kernel"] = jnp.ones_like(
        params["actor"]["body"]["Dense_0"]["kernel"]
    )
    params["actor"]["head"]["kernel"] = params["actor"]["head"]["kernel"].at[:, 1].set(0.1)
    run = {"env": env, "policy": policy, "episodes": 500}
    greedy = evaluate.evaluate(KEY, params, NOTHING, **run)
    assert (greedy.episode_return == 1).all()
    sampled = evaluate.evaluate(KEY, params, NOTHING, **run, greedy=False)
    assert 0.1 < sampled.episode_return.mean() < 0.9


def test_observations_are_normalised_as_in_training():
    env = MatchObservation()
    policy, params = agent(env)
    seen = []

    def spy(params, core, obs, start):
        seen.append(obs)
        return policy.act(params, core, obs, start)

    moments = rollout.Moments(obs=normalization.init((1,)).replace(mean=jnp.array([5.0])))
    with jax.disable_jit():
        evaluate.evaluate(
            KEY, params, moments, env=env, policy=policy._replace(act=spy), episodes=4
        )
    assert set(np.unique(seen[0])) <= {-4.0, -6.0}


def test_frames_are_drawn_by_the_environment(tmp_path):
    env = envs.make("CartPole-v1")
    policy, params = agent(env)
    frames = evaluate.record(KEY, params, NOTHING, env=env, policy=policy)
    assert 9 <= len(frames) <= 501 and frames[0].shape == (300, 300, 3)
    assert (frames[0] != frames[-1]).any()
    evaluate.save_gif(frames, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == len(frames) and image.size == (300, 300)


def test_the_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(500):
        low, high = evaluate.confidence_interval(rng.normal(3.0, 2.0, 100))
        hits += low < 3.0 < high
    assert 0.92 < hits / 500 < 0.98
    assert np.isnan(evaluate.confidence_interval(np.array([1.0]))).all()


def test_an_environment_without_pictures_says_so():
    policy, params = agent(Counter())
    with pytest.raises(envs.InvalidEnvironment, match="has no render"):
        evaluate.record(KEY, params, NOTHING, env=Counter(), policy=policy)
