"""Evaluation: complete episodes with the trained policy, and recordings."""

import gc
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import ppo_jax
from ppo_jax import config as configs
from ppo_jax import envs, evaluate, experiment, normalization, rollout
from ppo_jax.cli import evaluate as evaluate_command
from ppo_jax.envs import spaces
from ppo_jax.networks import make_policy
from ppo_jax.runs import loop, terminal
from ppo_jax.runs.metrics_log import read_metrics
from probe_envs import Counter, MatchObservation, TimeLimit

KEY = jax.random.key(0)
NOTHING = rollout.Moments()


def agent(env, **options):
    policy = make_policy(env.observation_space, env.action_space, hidden=(8,), **options)
    obs, _ = env.reset(KEY, env.params)
    return policy, policy.init(KEY, jax.tree.map(lambda x: x[None], obs))


def test_returns_and_lengths_are_those_of_whole_episodes():
    """Counter's episode length is 3 + id % 4, which determines its return."""
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
    # Slightly better than random: the mode is always right, a sample only mostly.
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


class OneStep:
    """Ends after one step with a reward that depends on the key."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)
    params, time_limit, traces = (), 1, 0

    def reset(self, key, params):
        return jnp.zeros(1), key

    def step(self, key, state, action, params):
        type(self).traces += 1
        done = jnp.ones((), bool)
        return jnp.zeros(1), state, jax.random.normal(state), done, ~done, {}


class Endless(OneStep):
    """Does not terminate before its time limit."""

    time_limit = None

    def step(self, key, state, action, params):
        return jnp.zeros(1), state, jnp.float32(1.0), jnp.zeros((), bool), jnp.zeros((), bool), {}


@pytest.mark.parametrize("games", [2, 4, 10])
@pytest.mark.parametrize("agents", [1, 3])
def test_the_interval_covers_the_mean_of_a_few_games(games, agents):
    """The returns of agents in one game are correlated: the interval must be over games."""
    rng, hits = np.random.default_rng(games), 0
    for _ in range(2000):
        luck = rng.normal(0.0, 1.0, (games, 1))
        returns = (luck + 0.1 * rng.normal(0.0, 1.0, (games, agents))).ravel()
        low, high = evaluate.confidence_interval(returns, agents)
        hits += low < 0.0 < high
    assert 0.93 < hits / 2000 < 0.97


def test_the_interval_is_that_of_student():
    x = np.random.default_rng(1).normal(3.0, 2.0, 5)
    expected = stats.t.interval(0.95, 4, np.mean(x), stats.sem(x))
    np.testing.assert_allclose(evaluate.confidence_interval(x), expected)
    # Two equal rows for each game: the number of games and the interval are unchanged.
    np.testing.assert_allclose(evaluate.confidence_interval(np.repeat(x, 2), 2), expected)


def test_a_single_game_has_no_interval():
    assert np.isnan(evaluate.confidence_interval(np.array([1.0, 2.0, 3.0]), 3)).all()
    found = evaluate.summary_of([1.0], [True])
    assert found["eval_return_ci95_low"] is None and found["eval_return_ci95_high"] is None


def test_large_returns_have_a_deviation():
    """The square of this return is infinite in float32."""
    x = np.array([1e30, 3e30], np.float32)
    found = evaluate.summary_of(x, np.ones(2, bool))
    assert found["eval_return_std"] == pytest.approx(1e30) and np.isfinite(
        found["eval_return_mean"]
    )


def test_a_run_says_how_many_episodes_were_cut(tmp_path, monkeypatch, capsys):
    """In the summary, in the metrics of evaluations during training, and in the command's
    output."""
    monkeypatch.setattr(evaluate, "DEFAULT_MAX_STEPS", 7)
    config = configs.make(env=Endless, num_envs=4, num_steps=4, total_timesteps=32, hidden=(4,))
    options = {"eval_episodes": 3, "eval_every": 1}
    with pytest.warns(UserWarning, match="3 of 3 episodes did not end"):
        result = ppo_jax.run(config, tmp_path / "a", env=Endless, **options)
    assert result.exit_code == 0 and result.summary["status"] == "finished"
    assert result.summary["eval_episodes_cut"] == 3 and result.summary["eval_return_mean"] == 7
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [row["eval_episodes_cut"] for row in rows] == [3, 3]
    table = terminal._evaluated(result.summary)
    assert "over 3 episodes, greedy, 3 of them cut" in table
    played = evaluate.Returns(*map(np.array, ([7.0, 8.0], [7, 7], [True, False], [True, True])))
    line = evaluate_command._described(played, "greedy", 1)
    assert "2 greedy episodes, 1 of them cut before their end" in line


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_returns_that_are_not_finite_have_no_statistics(value):
    x = np.array([1.0, value])
    found = evaluate.summary_of(x, np.ones(2, bool))
    found = loop.finite(found)
    assert {name for name, x in found.items() if x is None} == {
        "eval_return_mean", "eval_return_std", "eval_return_ci95_low", "eval_return_ci95_high"
    }  # fmt: skip
    assert "not finite over 2 episodes" in terminal._evaluated(found)


def test_an_evaluation_that_is_not_finite_is_a_warning(tmp_path, monkeypatch):
    """The run itself has succeeded: its summary contains null, and the exit code is 0."""
    config = configs.make(env=OneStep, num_envs=4, num_steps=4, total_timesteps=32, hidden=(4,))

    def played(*_, episodes, **__):
        returns = np.zeros(episodes, np.float32)
        returns[0] = np.inf
        good = np.ones(episodes, bool)
        return evaluate.Returns(returns, np.ones(episodes, int), good, good)

    monkeypatch.setattr(experiment, "evaluate", played)
    with pytest.warns(UserWarning, match="1 of 2 episodes of the evaluation .* not finite"):
        result = ppo_jax.run(config, tmp_path / "a", env=OneStep, eval_episodes=2, eval_every=1)
    assert result.exit_code == 0 and result.summary["status"] == "finished"
    saved = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert saved["eval_return_mean"] is None and saved["eval_return_std"] is None
    assert "not finite over 2 episodes" in terminal._evaluated(saved)


def test_a_program_is_compiled_once(tmp_path):
    """One program per environment and policy for all parameters; another number of episodes is
    another program."""
    env = OneStep()
    policy, params = agent(env)
    OneStep.traces = 0
    run = {"env": env, "policy": policy, "episodes": 3}
    first = evaluate.evaluate(KEY, params, NOTHING, **run)
    once = OneStep.traces
    again = evaluate.evaluate(KEY, jax.tree.map(lambda x: x + 1, params), NOTHING, **run)
    assert OneStep.traces == once > 0
    np.testing.assert_array_equal(first.episode_return, again.episode_return)
    evaluate.evaluate(KEY, params, NOTHING, **run | {"episodes": 4})
    assert OneStep.traces > once


@pytest.fixture
def traced(monkeypatch):
    """A counter of the traces of an evaluation."""
    calls, play = [], evaluate._play
    monkeypatch.setattr(evaluate, "_play", lambda *a, **k: (calls.append(1), play(*a, **k))[1])
    return calls


def test_evaluations_of_a_run_compile_once(tmp_path, traced):
    """Four evaluations during training and one at the end, of one episode, so without an
    interval."""
    config = configs.make(env=OneStep, num_envs=4, num_steps=4, total_timesteps=64, hidden=(4,))
    result = ppo_jax.run(config, tmp_path / "a", env=OneStep, eval_episodes=1, eval_every=1)
    assert len(traced) == 1
    assert result.exit_code == 0 and result.summary["eval_return_ci95_low"] is None
    assert "interval" not in terminal._evaluated(result.summary)


def test_two_evaluations_of_a_run_compile_once(tmp_path, traced):
    """`ppo_jax.evaluate` reads the folder again, and reuses the program of an equal
    configuration."""
    config = configs.make(num_envs=4, num_steps=4, total_timesteps=16, hidden=(4,))
    ppo_jax.run(config, tmp_path / "a", eval_episodes=0)
    first = ppo_jax.evaluate(tmp_path / "a", 3)
    again = ppo_jax.evaluate(tmp_path / "a", 3)
    assert len(traced) == 1
    np.testing.assert_array_equal(first.episode_return, again.episode_return)


def test_a_program_goes_with_its_environment():
    """No reference to an environment, its policy or its compiled programs is kept."""
    env = OneStep()
    policy, params = agent(env)
    before = len(evaluate._programs)
    evaluate.evaluate(KEY, params, NOTHING, env=env, policy=policy, episodes=2)
    (_, program), watched = [*evaluate._programs.values()][-1], weakref.ref(env)
    freed = weakref.ref(program)
    assert len(evaluate._programs) == min(before + 1, evaluate.KEPT_PROGRAMS)
    del env, program
    gc.collect()
    assert watched() is None and freed() is None


def test_so_many_programs_stay():
    envs_ = [OneStep() for _ in range(evaluate.KEPT_PROGRAMS + 3)]
    policy, params = agent(envs_[0])
    for env in envs_:
        evaluate._kept_program(env, policy, episodes=1, max_steps=1, greedy=True)
    assert len(evaluate._programs) == evaluate.KEPT_PROGRAMS


def test_inside_another_program_nothing_is_kept():
    """A vectorised evaluation contains tracers, which must not be cached."""
    env = OneStep()
    policy, params = agent(env)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    evaluate._programs.clear()
    found = jax.vmap(
        lambda p: evaluate.evaluate(KEY, p, NOTHING, env=env, policy=policy, episodes=2)
    )(many)
    assert found.episode_return.shape == (2, 2) and not evaluate._programs
