"""collect: rows, values of true successors, exact metrics and running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import envs, normalization, rollout
from ppo_jax.networks import make_policy
from probe_envs import Counter, Dice, TimeLimit

KEY = jax.random.key(0)
STEPS, ENVS = 37, 6


def started(policy, vector, **options):
    """(state, parameters) before the first rollout."""

    @jax.jit
    def start():
        state = rollout.init(KEY, policy, vector, **options)
        return state, policy.init(jax.random.key(1), state.obs)

    return start()


def collecting(collect=rollout.collect, **options):
    """The rollout (key, params, state) -> results, as one compiled program."""
    return jax.jit(functools.partial(collect, **options))


def setup(env, num_envs=ENVS, **options):
    vector = envs.vectorize(env, num_envs, pool_size=num_envs * STEPS)
    policy = make_policy(env.observation_space, env.action_space, hidden=(8,))
    state, params = started(policy, vector, **options)
    # A value function with large, distinct values, so that a wrong successor is detected.
    params["critic"]["head"]["kernel"] *= 100.0
    collect = collecting(env=vector, policy=policy, num_steps=STEPS, gamma=0.9)
    return policy, params, state, collect


@pytest.mark.parametrize("time_limit", [3, None], ids=["few slots", "unknown limit"])
def test_next_value_is_that_of_the_true_successor(time_limit):
    """Counter truncates every second episode; its true final observation is (id, length)."""
    env = Counter(time_limit)
    policy, params, state, collect = setup(env)
    apply = jax.jit(policy.apply)
    value_of = lambda obs: np.asarray(apply(params, obs)[1])
    for i in range(3):
        before = state
        state, t = collect(jax.random.key(i), params, state)
        np.testing.assert_array_equal(t.obs[0], before.obs)
        final, after = env.successor(t.obs), jnp.concatenate([t.obs[1:], state.obs[None]])
        truncated = np.asarray(t.done & ~t.terminated)
        assert truncated.sum() > 5 and t.terminated.sum() > 5
        # Values that could be mistaken for the successor's value are different.
        here, there, wrong = value_of(t.obs), value_of(final), value_of(after)
        assert np.abs(there - here).min() > 0.01
        assert np.abs(there - wrong)[truncated].min() > 0.01
        assert np.diff(np.sort(there[truncated])).min() > 1e-3
        expected = np.where(truncated, there, wrong)
        alive = ~t.terminated  # not used after a termination
        np.testing.assert_allclose(t.next_value[alive], expected[alive], rtol=1e-4, atol=1e-4)
        assert state.metrics["reused_resets"] == 0


@pytest.mark.parametrize("shared", [False, True], ids=["critic afterwards", "critic in the loop"])
def test_values_and_log_probs_are_those_of_the_policy(shared):
    env = envs.make("CartPole-v1")
    vector = envs.vectorize(env, ENVS)
    policy = make_policy(env.observation_space, env.action_space, shared_torso=shared)
    state, params = started(policy, vector)
    collect = collecting(env=vector, policy=policy, num_steps=STEPS, gamma=0.9)
    _, t = collect(KEY, params, state)
    dist, value = jax.jit(policy.apply)(params, t.obs)
    np.testing.assert_allclose(t.value, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(t.log_prob, dist.log_prob(t.action), rtol=1e-4, atol=1e-6)


def test_no_two_steps_draw_alike():
    """Every environment uses a different key in every step of every rollout."""
    _, params, state, collect = setup(Dice())
    seen = []
    for i in range(2):
        state, t = collect(jax.random.key(i), params, state)
        seen.append(np.asarray(t.obs))
    assert len(np.unique(seen)) == np.size(seen)


def test_rows_are_what_the_environment_did():
    """Repeat the actions with one environment at a time."""
    _, params, state, collect = setup(envs.make("CartPole-v1"))
    env = envs.make("CartPole-v1")
    step = jax.jit(env.step)
    _, t = collect(KEY, params, state)
    for n in range(ENVS):
        one = jax.tree.map(lambda x, n=n: x[n], state.env_state.env_state)
        for i in range(STEPS):
            np.testing.assert_allclose(t.obs[i, n], env.env.get_obs(one), rtol=1e-5, atol=1e-6)
            _, one, reward, terminated, truncated, _ = step(KEY, one, t.action[i, n], env.params)
            assert reward == t.reward[i, n]
            assert bool(terminated) == bool(t.terminated[i, n])
            if terminated | truncated:
                break
        else:
            continue
    assert t.terminated.any()
    assert (t.weight == 1).all() and t.action.dtype == jnp.int32


def test_metrics_are_those_of_the_finished_episodes():
    """Counter's returns and lengths follow from the ids; episodes span rollouts."""
    _, params, state, collect = setup(Counter())
    lengths_so_far, returns_so_far = np.zeros(ENVS), np.zeros(ENVS)
    for i in range(4):
        state, t = collect(jax.random.key(i), params, state)
        returns, lengths = [], []
        for k in range(STEPS):
            returns_so_far += np.asarray(t.reward[k])
            lengths_so_far += 1
            for n in np.flatnonzero(t.done[k]):
                returns.append(returns_so_far[n])
                lengths.append(lengths_so_far[n])
                returns_so_far[n] = lengths_so_far[n] = 0
        expected = {
            "episodes": len(returns),
            "episode_return": np.mean(returns),
            "episode_return_std": np.std(returns),
            "episode_return_min": np.min(returns),
            "episode_return_max": np.max(returns),
            "episode_length": np.mean(lengths),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(state.metrics[name], value, rtol=1e-4, err_msg=name)


def test_no_finished_episode_is_nan_and_not_zero():
    _, params, state, collect = setup(envs.make("Pendulum-v1"))
    state, _ = collect(KEY, params, state)
    assert state.metrics["episodes"] == 0
    assert all(np.isnan(state.metrics[k]) for k in state.metrics if k.startswith("episode_"))


def test_observations_are_normalised_by_frozen_moments():
    env = Counter()
    policy, params, state, collect = setup(env, normalize_obs=True)
    reference, apply = normalization.init((2,)), jax.jit(policy.apply)
    for i in range(3):
        moments = state.moments.obs
        state, t = collect(jax.random.key(i), params, state)
        assert np.abs(t.obs).max() < 9.99  # not clipped, hence invertible
        raw = np.asarray(t.obs) * np.sqrt(np.asarray(moments.var) + 1e-8) + np.asarray(moments.mean)
        reference = normalization.update(reference, jnp.asarray(raw))
        np.testing.assert_allclose(state.moments.obs.mean, reference.mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(state.moments.obs.var, reference.var, rtol=1e-3)
        assert state.moments.obs.count == pytest.approx((i + 1) * STEPS * ENVS, rel=1e-3)
        # The updated policy gets the same inputs as the acting policy.
        dist, value = apply(params, t.obs)
        np.testing.assert_allclose(t.log_prob, dist.log_prob(t.action), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(t.value, value, rtol=1e-3, atol=1e-3)
        # And so does the critic.
        truncated = np.asarray(t.done & ~t.terminated)[..., None]
        after = jnp.concatenate([raw[1:], state.obs[None]])
        successor = jnp.where(truncated, env.successor(raw), after)
        expected = apply(params, normalization.normalize(moments, successor))[1]
        alive = ~t.terminated
        np.testing.assert_allclose(t.next_value[alive], expected[alive], rtol=1e-3, atol=1e-2)


def test_rewards_are_scaled_by_the_deviation_of_discounted_returns():
    _, params, state, collect = setup(Counter(), normalize_reward=True)
    _, _, plain, collect_plain = setup(Counter())
    accumulated, seen = np.zeros(ENVS), []
    for i in range(3):
        state, t = collect(jax.random.key(i), params, state)
        plain, raw = collect_plain(jax.random.key(i), params, plain)
        for k in range(STEPS):
            accumulated = accumulated * 0.9 + np.asarray(raw.reward[k])
            seen.append(accumulated.copy())
            accumulated[np.asarray(raw.done[k])] = 0
        deviation = np.std(np.stack(seen))
        np.testing.assert_allclose(np.sqrt(state.moments.reward.var), deviation, rtol=1e-3)
        np.testing.assert_allclose(t.reward, np.asarray(raw.reward) / deviation, rtol=1e-3)
        np.testing.assert_array_equal(
            state.metrics["episode_return"], plain.metrics["episode_return"]
        )


def test_a_time_limit_shorter_than_the_rollout_fills_several_slots():
    policy, params, state, collect = setup(TimeLimit())
    state, t = collect(KEY, params, state)
    assert (t.done.sum(0) == STEPS // 5).all() and not t.terminated.any()
    np.testing.assert_allclose(t.next_value, t.value[0, 0], rtol=1e-5)  # all states are alike


def test_flatten_steps_keeps_rows_together():
    _, params, state, collect = setup(Counter())
    _, t = collect(KEY, params, state)
    flat = rollout.flatten_steps(t)
    assert flat.obs.shape == (STEPS * ENVS, 2)
    np.testing.assert_array_equal(flat.reward[ENVS + 2], t.reward[1, 2])
    np.testing.assert_array_equal(flat.obs[ENVS + 2], t.obs[1, 2])


class DummySteps:
    """A vector environment that wastes the step after an end, like NEXT_STEP in Gymnasium."""

    num_envs, time_limit = 2, None

    def __init__(self):
        env = Counter()
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def reset(self, key):
        return jnp.zeros((2, 2)), jnp.int32(0)

    def step(self, key, state, action):
        time = state + 1
        obs = jnp.stack([jnp.full(2, time), jnp.arange(2)], axis=1).astype(jnp.float32)
        done = jnp.broadcast_to(time % 4 == 3, (2,))
        valid = jnp.broadcast_to(time % 4 != 0, (2,))
        reward = jnp.where(valid, 1.0, 99.0)
        info = {"final_observation": obs, "valid": valid}
        return obs, time, reward, done, jnp.zeros(2, bool), info


def test_the_step_after_a_dummy_starts_the_episode():
    """The recurrent state must be reset once per episode, at its first real step."""
    vector = DummySteps()
    plain = make_policy(vector.observation_space, vector.action_space, hidden=(4,))
    starts = []

    def act(params, core, obs, start):
        core = jnp.where(start, 0, core) + 1
        return core, *plain.act(params, (), obs, start)[1:]

    policy = plain._replace(init_core=lambda n: jnp.zeros(n, int), act=act, value=None)
    state, params = started(policy, vector)
    collect = collecting(env=vector, policy=policy, num_steps=1, gamma=0.9)
    for _ in range(12):
        state, t = collect(KEY, params, state)
        starts.append((int(state.core[0]), int(t.weight[0, 0])))
    assert [core for core, weight in starts if weight] == [1, 2, 3] * 3


def test_truncations_before_the_time_limit_are_counted():
    """TimeLimit truncates every 5 steps; here it declares at least 30."""
    env = TimeLimit()
    env.__dict__["time_limit"] = 30
    policy, params, state, collect = setup(env)
    assert state.metrics["lost_cuts"] == 0
    state, t = collect(KEY, params, state)
    slots = 1 + (STEPS - 1) // 30
    assert state.metrics["lost_cuts"] == ENVS * (STEPS // 5 - slots) > 0


def test_dummy_steps_have_no_weight_and_no_reward():
    vector = DummySteps()
    policy = make_policy(vector.observation_space, vector.action_space, hidden=(4,))
    state, params = started(policy, vector)
    collect = collecting(env=vector, policy=policy, num_steps=12, gamma=0.9)
    state, t = collect(KEY, params, state)
    np.testing.assert_array_equal(t.weight[:, 0], [1, 1, 1, 0] * 3)
    assert state.metrics["episodes"] == 6
    assert state.metrics["episode_return"] == 3 and state.metrics["episode_length"] == 3


class Points(TimeLimit):
    """Games of five steps; every second step settles a point, at which credit ends."""

    def step(self, key, state, action, params):
        *result, _ = super().step(key, state, action, params)
        return *result, {"settled": result[1] % 2 == 0}


def test_what_is_settled_is_over_for_learning_and_goes_on_for_the_environment():
    _, params, state, collect = setup(Points())
    state, t = collect(KEY, params, state)
    step = np.arange(1, STEPS + 1) % 5  # step of the game, 0 for the last
    settled = (step % 2 == 0) & (step > 0)
    np.testing.assert_array_equal(t.terminated, np.tile(settled[:, None], ENVS))
    np.testing.assert_array_equal(t.done, np.tile((settled | (step == 0))[:, None], ENVS))
    assert state.metrics["episodes"] == ENVS * (STEPS // 5) and state.metrics["episode_length"] == 5


def test_dummy_steps_are_not_among_the_statistics():
    """Nine of twelve steps took place: their observations, and their returns at γ = 0.9."""
    vector = DummySteps()
    policy = make_policy(vector.observation_space, vector.action_space, hidden=(4,))
    state, params = started(policy, vector, normalize_obs=True, normalize_reward=True)
    options = {"env": vector, "policy": policy, "num_steps": 12, "gamma": 0.9}
    moments = collecting(**options)(KEY, params, state)[0].moments
    # The time and the number of the environment, except for the zeros of the reset.
    shown = np.array([[t, n * (t > 0)] for t in range(12) if t % 4 != 3 for n in range(2)])
    np.testing.assert_allclose(moments.obs.count, 18, rtol=1e-4)
    np.testing.assert_allclose(moments.obs.mean, shown.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.obs.var, shown.var(0), rtol=1e-3)
    np.testing.assert_allclose(moments.reward.count, 18, rtol=1e-4)
    np.testing.assert_allclose(moments.reward.mean, np.mean([1, 1.9, 2.71]), rtol=1e-4)
    np.testing.assert_allclose(moments.reward.var, np.var([1, 1.9, 2.71]), rtol=1e-3)


def test_collect_episodes_starts_anew_everywhere():
    """Row 0 of every rollout starts an episode; unfinished episodes are abandoned."""
    policy, params, _, _ = setup(Counter())
    env = envs.vectorize(Counter(), ENVS, STEPS)
    options = {"env": env, "policy": policy, "num_steps": STEPS, "gamma": 0.9, "longest": 6}
    collect = collecting(rollout.collect_episodes, **options)
    state, _ = started(policy, env, normalize_reward=True)
    names = []
    for i in range(3):
        state, t = collect(jax.random.key(i), params, state)
        np.testing.assert_array_equal(t.obs[0, :, 1], 0)
        names.append(Counter().name_of(t.obs[0]))
        assert state.metrics["reused_resets"] == 0
    assert len(np.unique(names)) == 3 * ENVS
    assert state.moments.reward.count > 2 * ENVS * STEPS  # statistics are continued


def test_metrics_of_whole_episodes_do_not_favour_the_short():
    """Lengths 1 and 10 in equal numbers, in 12 steps: of episodes that start late, only short ones
    end in time. Episodes that start up to step 2 are counted, with mean length 5.5."""

    class ShortOrLong(TimeLimit):
        """An episode of one step or of ten, with equal probability."""

        def __init__(self):
            super().__init__()
            object.__setattr__(self, "time_limit", 10)
            object.__setattr__(self, "shortest_episode", 1)

        def reset(self, key, params):
            return jnp.zeros(1), jnp.where(jax.random.bernoulli(key), 1, 10)

        def step(self, key, state, action, params):
            left = state - 1
            return jnp.zeros(1), left, jnp.float32(1), left == 0, jnp.array(False), {}

    env = envs.vectorize(ShortOrLong(), 2000, 12)
    policy = make_policy(env.observation_space, env.action_space, hidden=(8,))
    state, params = started(policy, env)
    options = {"env": env, "policy": policy, "num_steps": 12, "gamma": 0.9}
    whole = collecting(rollout.collect_episodes, **options, longest=10)
    after, t = whole(KEY, params, state)
    whole = after.metrics
    np.testing.assert_allclose(whole["episode_length"], 5.5, atol=0.2)
    assert whole["episodes"] == 2000 + t.done[:2].sum()  # starts at steps 0, 1 and 2
    plain = collecting(**options)(KEY, params, state)[0].metrics
    assert plain["episode_length"] < 4.5 and plain["episodes"] > whole["episodes"]
