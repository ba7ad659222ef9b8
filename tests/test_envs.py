"""Agreement of the gymnax adapter, independence of resets, and refusal of invalid environments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.wrappers import FlattenObservationWrapper

from ppo_jax import envs
from ppo_jax.envs import spaces
from ppo_jax.envs.gymnax import SHORTEST_EPISODE, _gymnax
from probe_envs import Counter, RewardIsObservation

KEY = jax.random.key(0)
# MNISTBandit downloads its data.
IDS = [i for i in envs.names() if "MNIST" not in i]


@pytest.mark.parametrize("name", [i for i in IDS if i.startswith("gymnax:")])
def test_adapter_is_gymnax_without_the_reset(name):
    env = envs.make(name)
    gymnax, params = _gymnax().make(name.split(":")[1])

    @jax.jit
    def both(state):
        """Twelve steps, each from the state that our own step returned."""

        def step(state, i):
            key = jax.random.key(i)
            action = gymnax.action_space(params).sample(jax.random.key(100 + i))
            step_key = jax.random.split(key)[0]  # the key that gymnax's step passes to step_env
            ours = env.step(step_key, state, action, env.params)
            theirs = gymnax.step(key, state, action, params)
            final = theirs[5]["final_observation"]
            return ours[1], ((ours[0], *ours[2:5]), (final, *theirs[2:5]))

        return jax.lax.scan(step, state, jnp.arange(12))[1]

    ours, theirs = both(jax.jit(env.reset)(KEY, env.params)[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours[0], theirs[0]
    )
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)
    assert ours[1].dtype == jnp.float32 and ours[2].dtype == ours[3].dtype == bool


@pytest.mark.parametrize("name", IDS)
def test_every_environment_runs_vectorised(name):
    env = envs.as_env(envs.make(name))
    vector = envs.vectorize(env, 4)

    @jax.jit
    def run(key):
        def step(carry, key):
            action = jnp.zeros((4, *env.action_space.shape), env.action_space.dtype)
            obs, state, reward, terminated, truncated, info = vector.step(key, carry[1], action)
            return (obs, state), (reward, terminated, truncated, info)

        return jax.lax.scan(step, vector.reset(key), jax.random.split(key, 20))

    (obs, state), (reward, terminated, truncated, info) = run(KEY)
    assert reward.shape == terminated.shape == truncated.shape == (20, 4)
    assert info["valid"].all() and np.isfinite(reward).all()
    assert jax.tree.leaves(obs)[0].shape[0] == 4


def test_a_step_equals_the_single_environments():
    env = envs.make("CartPole-v1")
    vector = envs.vectorize(env, 3)
    obs, state = jax.jit(vector.reset)(KEY)
    action, key = jnp.array([0, 1, 1]), jax.random.key(5)
    found, step = jax.jit(vector.step)(key, state, action), jax.jit(env.step)
    for n, step_key in enumerate(jax.random.split(key, 3)):
        one = jax.tree.map(lambda x, n=n: x[n], state.env_state)
        expected = step(step_key, one, action[n], env.params)
        np.testing.assert_allclose(found[0][n], expected[0], rtol=1e-6)


@functools.cache
def run_counter(num_envs=8, steps=40, pool_size=None):
    env = Counter()
    vector = envs.vectorize(env, num_envs, pool_size=pool_size)

    @jax.jit
    def run():
        def step(carry, key):
            action = jnp.zeros(num_envs, int)
            obs, state, _, terminated, truncated, info = vector.step(key, carry[1], action)
            row = (carry[0], obs, terminated, truncated, info["final_observation"])
            return (obs, state), row

        return jax.lax.scan(step, vector.reset(KEY), jax.random.split(jax.random.key(1), steps))

    (_, state), rows = run()
    return vector, state, [np.asarray(x) for x in rows]


def test_a_finished_episode_is_followed_by_a_fresh_one():
    _, _, (before, after, terminated, truncated, final) = run_counter(pool_size=200)
    done = terminated | truncated
    assert done.any() and terminated.any() and truncated.any()
    # The true successor is in the same episode, one step later.
    np.testing.assert_array_equal(final, Counter().successor(before))
    np.testing.assert_array_equal(after[~done], final[~done])
    # A new episode starts at step 0 under a new id.
    assert (after[done][:, 1] == 0).all() and (after[done][:, 0] != before[done][:, 0]).all()


def test_every_reset_of_the_pool_is_used_at_most_once():
    vector, state, (_, after, terminated, truncated, _) = run_counter(pool_size=200)
    started = after[terminated | truncated][:, 0]
    assert len(started) > 50 and len(np.unique(started)) == len(started)
    assert int(state.taken) == len(started)
    refreshed, metrics = jax.jit(vector.refresh)(jax.random.key(9), state)
    assert metrics["reused_resets"] == 0 and refreshed.taken == 0
    assert not np.isin(refreshed.pool[0][:, 0], state.pool[0][:, 0]).any()


@pytest.mark.parametrize(
    ("shortest", "steps", "each"), [(2, 7, 4), (5, 5, 1), (5, 6, 2), (5, 11, 3), (3, 40, 14)]
)
def test_a_pool_holds_as_many_resets_as_episodes_can_end(shortest, steps, each):
    """The first episode may have started long before the rollout."""
    env = altered(shortest_episode=shortest)
    assert envs.vectorize(env, 4, steps).pool_size == 4 * each


def test_an_exhausted_pool_goes_round_and_says_so():
    vector, state, (_, after, terminated, truncated, _) = run_counter(pool_size=10)
    started = after[terminated | truncated][:, 0]
    assert len(np.unique(started)) == 10
    _, metrics = vector.refresh(KEY, state)
    assert metrics["reused_resets"] == len(started) - 10 > 0


def test_pooled_starts_are_distributed_as_resets_and_independent():
    """CartPole's initial states are uniform in ±0.05: mean, variance, quantiles, and no correlation
    over time or between environments."""
    vector = envs.vectorize(envs.make("CartPole-v1"), 64, pool_size=64 * 16)

    @jax.jit
    def rollout(key, obs, state):
        def step(carry, key):
            obs, state, _, terminated, truncated, _ = vector.step(
                key, carry[1], jax.random.bernoulli(key, shape=(64,)).astype(int)
            )
            return (obs, state), (obs, terminated | truncated)

        key, refresh_key = jax.random.split(key)
        (obs, state), rows = jax.lax.scan(step, (obs, state), jax.random.split(key, 128))
        return obs, vector.refresh(refresh_key, state), rows

    obs, state = jax.jit(vector.reset)(KEY)
    starts = []
    for i in range(20):
        obs, (state, metrics), (seen, done) = rollout(jax.random.key(i), obs, state)
        starts.append(np.asarray(seen)[np.asarray(done)])
        assert metrics["reused_resets"] == 0
    starts = np.concatenate(starts)
    count = len(starts)
    assert count > 5000
    quantiles = np.quantile(starts, np.linspace(0, 1, 21), axis=0)
    expected = np.linspace(-0.05, 0.05, 21)[:, None]
    assert np.abs(quantiles - expected).max() < 3 * 0.1 * 0.5 / np.sqrt(count)
    successive = np.corrcoef(starts[:-1].T, starts[1:].T)[:4, 4:]
    assert np.abs(successive).max() < 4 / np.sqrt(count)


def test_continuous_cartpole_is_cartpole_at_full_force():
    discrete, continuous = envs.make("CartPole-v1"), envs.make("CartPoleContinuous-v1")
    _, state = discrete.reset(KEY, discrete.params)
    for force, push in ((-1.0, 0), (1.0, 1), (-7.0, 0), (3.0, 1)):  # beyond the bounds: clipped
        ours = continuous.step(KEY, state, jnp.array([force]), continuous.params)
        theirs = discrete.step(KEY, state, jnp.array(push), discrete.params)
        np.testing.assert_array_equal(ours[0], theirs[0])
    rest = continuous.step(KEY, state, jnp.array([0.0]), continuous.params)[1]
    half = continuous.step(KEY, state, jnp.array([0.5]), continuous.params)[1]
    full = continuous.step(KEY, state, jnp.array([1.0]), continuous.params)[1]
    np.testing.assert_allclose(half.x_dot - rest.x_dot, (full.x_dot - rest.x_dot) / 2, rtol=1e-4)
    assert continuous.time_limit == 500


def at_random(env):
    return lambda key, obs: jax.random.randint(key, (), 0, env.action_space.n)


# Environments that random actions never solve, with policies that pump energy into the swing.
IN_A_HURRY = {
    "MountainCar-v0": lambda key, obs: jnp.where(obs[1] >= 0, 2, 0),
    "MountainCarContinuous-v0": lambda key, obs: jnp.sign(obs[1:]),
    "Acrobot-v1": lambda key, obs: jnp.where(obs[4] >= 0, 0, 2),
}


@pytest.mark.parametrize("name", SHORTEST_EPISODE)
def test_declared_shortest_episodes_are_not_undercut(name):
    env = envs.make(name)
    if env.shortest_episode == env.time_limit:
        # Only the time limit ends these episodes.
        assert name in ("Pendulum-v1", "Freeway-MinAtar", "DeepSea-bsuite")
        return
    vector = envs.vectorize(env, 256, pool_size=4096)
    policy = IN_A_HURRY.get(name, at_random(env))

    @jax.jit
    def run(key):
        obs, state = vector.reset(key)

        def step(carry, key):
            obs, state, length = carry
            action = jax.vmap(policy)(jax.random.split(key, 256), obs)
            obs, state, _, terminated, truncated, _ = vector.step(key, state, action)
            done = terminated | truncated
            ended = jnp.where(done, length + 1, 10**6).min()
            return (obs, state, jnp.where(done, 0, length + 1)), ended

        keys = jax.random.split(key, 260)
        return jax.lax.scan(step, (obs, state, jnp.zeros(256, int)), keys)[1]

    assert 10**6 > run(KEY).min() >= env.shortest_episode > 1


def test_arguments_of_a_constructor_void_the_shortest_episode():
    assert envs.make("Catch-bsuite").shortest_episode == 9
    assert envs.make("Catch-bsuite", rows=5).shortest_episode == 1
    assert envs.as_env(_gymnax().make("Catch-bsuite")[0]).shortest_episode == 1


def test_changed_parameters_void_the_shortest_episode():
    assert envs.make("CartPole-v1", x_threshold=0.1).shortest_episode == 1
    assert envs.make("CartPole-v1").shortest_episode == 8


def test_parameters_are_passed_on():
    env = envs.make("CartPole-v1", max_steps_in_episode=9)
    assert env.time_limit == 9
    assert envs.make("CartPoleContinuous-v1", gravity=5.0).params.gravity == 5.0


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("CartPole-v1", "gymnax:CartPole-v1"),
        ("gymnax:CartPole-v1", "gymnax:CartPole-v1"),
        ("CartPoleContinuous-v1", "ppo_jax:CartPoleContinuous-v1"),
    ],
)
def test_bare_names_resolve(given, full):
    assert envs.canonical(given) == full


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("CartPole-v2", "did you mean CartPole-v1"),
        ("cartpole", "unknown environment 'cartpole'"),
        ("gimnax:CartPole-v1", "unknown suite 'gimnax'; there are: ppo_jax, gymnax"),
        ("zzzzzz", "`ppo-jax envs` lists the suites"),
    ],
)
def test_unknown_names_get_a_hint(given, message):
    with pytest.raises(envs.UnknownEnvironment, match=message):
        envs.make(given)


def test_a_gymnax_object_is_taken_as_it_is():
    gymnax_env, _ = _gymnax().make("Pendulum-v1")
    env = envs.as_env(gymnax_env)
    assert env.time_limit == 200 and env.action_space.shape == (1,)


def test_gymnax_0_environments_are_refused():
    class Old:
        default_params = None
        step_env = reset_env = None

    with pytest.raises(envs.InvalidEnvironment, match="gymnax 0.x"):
        envs.as_env(Old())


def test_gymnax_wrappers_are_refused():
    wrapped = FlattenObservationWrapper(_gymnax().make("CartPole-v1")[0])
    with pytest.raises(envs.InvalidEnvironment, match="FlattenObservationWrapper is a gymnax wr"):
        envs.as_env(wrapped)


def test_unknown_parameters_get_a_hint():
    with pytest.raises(
        envs.InvalidEnvironment, match="no parameter 'gravty'; did you mean gravity"
    ):
        envs.make("CartPole-v1", gravty=9.0)


def altered(**changes):
    """RewardIsObservation with changed attributes."""
    env = RewardIsObservation()
    env.__dict__.update(changes)
    return env


def broken(**changes):
    """RewardIsObservation with a step whose results are changed by name."""
    names = ("obs", "state", "reward", "terminated", "truncated", "info")

    class Broken(RewardIsObservation):
        def step(self, key, state, action, params):
            result = dict(zip(names, super().step(key, state, action, params), strict=True))
            result |= {k: f(result[k]) for k, f in changes.items()}
            return tuple(v for v in result.values() if v is not None)

    return Broken()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (object(), "lacks reset, step, params"),
        (broken(truncated=lambda _: None), "returned 5 values; expected the six"),
        (
            broken(obs=lambda x: x[0]),
            r"observation is float32\[1\] from reset but float32\[\] from step",
        ),
        (broken(state=lambda x: x > 0), r"state is float32\[\] from reset but bool\[\] from step"),
        (broken(state=lambda x: (x,)), "state of step has another structure"),
        (broken(reward=lambda x: x[None]), r"reward of float32\[1\]; expected float32\[\]"),
        (broken(terminated=lambda x: x * 1.0), r"terminated of float32\[\]; expected bool\[\]"),
        (altered(time_limit=0), "time_limit is 0; it must be >= 1 or None"),
        (altered(action_space="two buttons"), "two buttons, cannot be served; there are"),
        (
            altered(observation_space=spaces.Box(-1.0, 1.0, (2,))),
            r"observations have shape \(1,\), its observation_space \(2,\)",
        ),
    ],
)
def test_environments_that_do_not_fit_are_refused(env, message):
    with pytest.raises(envs.InvalidEnvironment, match=message):
        envs.as_env(env)


@pytest.mark.parametrize(
    "name",
    [
        "CartPole-v1",
        "CartPoleContinuous-v1",
        "Pendulum-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "Breakout-MinAtar",
        "FourRooms-misc",
    ],
)
def test_pictures_show_the_state(name):
    env = envs.make(name)
    _, state = env.reset(KEY, env.params)
    picture = envs.render(env, state)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1
    moved = state
    for i in range(8):
        action = jnp.full(env.action_space.shape, 1, env.action_space.dtype)
        moved = env.step(jax.random.key(i), moved, action, env.params)[1]
    if name != "FourRooms-misc":
        assert (envs.render(env, moved) != picture).any()


def test_no_picture_is_said():
    env = envs.make("UmbrellaChain-bsuite")
    with pytest.raises(envs.InvalidEnvironment, match="no picture"):
        envs.render(env, env.reset(KEY, env.params)[1])
    with pytest.raises(envs.InvalidEnvironment, match="has no render"):
        envs.render(Counter(), None)


def test_environment_params_may_be_traced():
    env = envs.make("CartPole-v1")

    def height(gravity):
        heavier = dataclasses.replace(env, params=env.params.replace(gravity=gravity))
        vector = envs.vectorize(heavier, 2)
        _, state = vector.reset(KEY)
        return vector.step(KEY, state, jnp.zeros(2, int))[0]

    different = jax.jit(jax.vmap(height))(jnp.array([1.0, 20.0]))
    assert (different[0] != different[1]).any()
