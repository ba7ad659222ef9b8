"""Gymnasium environments: transitions, resets, spaces, and unsupported features."""

import functools
import json
import os
import warnings
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax import envs, rollout
from ppo_jax.advantages import estimate_gae
from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment, host, jaxmarl, spaces
from ppo_jax.evaluate import evaluate, record
from ppo_jax.experiment import RunOptions, compile_run, train
from ppo_jax.networks import make_policy
from ppo_jax.sweep import run_seeds
from ppo_jax.train import build, make_train

gymnasium = pytest.importorskip("gymnasium")
SAME_STEP = gymnasium.vector.AutoresetMode.SAME_STEP
NEXT_STEP = gymnasium.vector.AutoresetMode.NEXT_STEP
DISABLED = gymnasium.vector.AutoresetMode.DISABLED
KEY = jax.random.key(0)
STEPS, ENVS, GAMMA = 23, 3, 0.9


class Counting(gymnasium.Env):
    """Observes its own history: obs = (random id of the episode, number of steps), in float64.

    An episode with id i has 3 + i % 4 steps and ends by termination if i is even, else by
    truncation; the reward is i % 10 plus the step.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)
    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    steps = 0  # shared by all copies

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.id, self.time = int(self.np_random.integers(1000)), 0
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        Counting.steps += 1
        self.time += 1
        ends = self.time >= 3 + self.id % 4
        even = self.id % 2 == 0
        return self._obs(), self.id % 10 + self.time, ends and even, ends and not even, {}

    def render(self):
        return np.full((4, 4, 3), self.time, np.uint8) if self.render_mode else None

    def _obs(self):
        return np.array([self.id, self.time], np.float64)


def vector(mode=SAME_STEP, num_envs=ENVS):
    return gymnasium.vector.SyncVectorEnv([Counting] * num_envs, autoreset_mode=mode)


def collect(env, num_envs=ENVS, rollouts=2, **options):
    """(policy, params, states before each rollout and after the last one, trajectories)."""
    venv = envs.vectorize(env, num_envs)
    policy = make_policy(env.observation_space, env.action_space, hidden=(8,))
    state = rollout.init(KEY, policy, venv, **options)
    params = policy.init(jax.random.key(1), state.obs)
    params["critic"]["head"]["kernel"] *= 100.0  # makes a wrong successor visible
    step = jax.jit(
        functools.partial(rollout.collect, env=venv, policy=policy, num_steps=STEPS, gamma=GAMMA)
    )
    states, trajectories = [state], []
    for i in range(rollouts):
        state, trajectory = step(jax.random.key(i), params, states[-1])
        states.append(state)
        trajectories.append(trajectory)
    return policy, params, states, trajectories


@pytest.fixture(scope="module")
def collected():
    return collect(envs.as_env(Counting))


def test_rows_are_what_the_environment_did(collected):
    """Repeated without the adapter: gymnasium seeds environment n with seed + n once."""
    _, _, states, trajectories = collected
    rows = jax.tree.map(lambda *x: np.concatenate(x), *trajectories)
    for n in range(ENVS):
        replay, time = Counting(), 0
        seed = int(jax.random.randint(KEY, (), 0, host.SEEDS))
        obs, _ = replay.reset(seed=seed + n)
        for i in range(2 * STEPS):
            np.testing.assert_array_equal(rows.obs[i, n], obs)
            obs, reward, terminated, truncated, _ = replay.step(rows.action[i, n])
            assert reward == rows.reward[i, n]
            assert terminated == rows.terminated[i, n]
            assert (terminated or truncated) == rows.done[i, n]
            time += 1
            if terminated or truncated:
                obs, time = replay.reset()[0], 0
        np.testing.assert_array_equal(states[-1].obs[n], obs)
        assert states[-1].episodes.episode_length[n] == time
    assert rows.obs.dtype == np.float32 and rows.done.sum() > 20


def test_a_time_limit_bootstraps_the_true_final_observation(collected):
    policy, params, states, trajectories = collected
    for t, after in zip(trajectories, states[1:], strict=True):
        truncated = t.done & ~t.terminated
        assert truncated.sum() > 3 and t.terminated.sum() > 3
        following = jnp.concatenate([t.obs[1:], after.obs[None]])
        final = t.obs + jnp.array([0.0, 1.0])  # the same id, one step later
        successor = jnp.where(truncated[..., None], final, following)
        expected = policy.apply(params, successor)[1]
        alive = ~t.terminated
        np.testing.assert_allclose(t.next_value[alive], expected[alive], rtol=1e-4, atol=1e-3)
        assert t.weight.all()


def advantages(trajectory):
    """(id, step) -> (advantage, target), for rows whose episodes ended within the rollout."""
    batch = estimate_gae(trajectory, gamma=GAMMA, lambda_=0.95)
    table = {}
    for n in range(trajectory.done.shape[1]):
        real = np.flatnonzero(np.asarray(trajectory.weight[:, n]))
        last = max(i for i in real if trajectory.done[i, n])
        for i in real[real <= last]:
            name = tuple(np.asarray(trajectory.obs[i, n]).astype(int).tolist())
            table[name] = (float(batch.advantage[i, n]), float(batch.target[i, n]))
    return table


def test_dummy_steps_change_nothing(collected):
    """The same episodes, reset in the same step, or with a dummy step in between."""
    same, state = collected[3][0], collected[2][1]
    _, _, (_, next_state), (dummies,) = collect(envs.as_env(vector(NEXT_STEP)), rollouts=1)
    assert 0 < (dummies.weight == 0).sum() == dummies.done[:-1].sum()
    np.testing.assert_array_equal(dummies.weight[1:] == 0, dummies.done[:-1])
    expected, found = advantages(same), advantages(dummies)
    assert len(found) > 30 and found.keys() <= expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-3)
    ended = np.asarray(dummies.done)
    lengths = [3 + int(i) % 4 for i in np.asarray(dummies.obs[..., 0])[ended]]
    assert next_state.metrics["episodes"] == ended.sum() < state.metrics["episodes"]
    np.testing.assert_allclose(next_state.metrics["episode_length"], np.mean(lengths), rtol=1e-6)


def test_the_same_key_gives_the_same_rows(collected):
    again = collect(envs.as_env(Counting), rollouts=1)[3][0]
    jax.tree.map(np.testing.assert_array_equal, again, collected[3][0])


class Spaced(gymnasium.Env):
    """An environment with arbitrary spaces, which refuses actions outside its action space."""

    def __init__(self, observation_space, action_space=None):
        self.observation_space = observation_space
        self.action_space = action_space or gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.obs(), {}

    def obs(self):
        obs = self.observation_space.sample()
        if isinstance(obs, dict) and "action_mask" in obs:
            obs["action_mask"][0] = 1  # one action remains legal
        return obs

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        return self.obs(), 0.0, self.np_random.random() < 0.5, False, {}


g = gymnasium.spaces
OBSERVATIONS = {
    "floats": (g.Box(-1.0, np.inf, (3,), np.float64), spaces.Box(-1.0, np.inf, (3,))),
    "bytes": (g.Box(0, 255, (8, 9, 3), np.uint8), spaces.Box(0, 255, (8, 9, 3), np.uint8)),
    "planes first": (g.Box(0, 255, (4, 8, 9), np.uint8), spaces.Box(0, 255, (8, 9, 4), np.uint8)),
    "whole numbers": (
        g.Box(-9, 2**31 - 1, (2,), np.int64),
        spaces.Box(-9, 2**31 - 1, (2,), np.int32),
    ),
    "wide numbers": (g.Box(0, 2**40, (2,), np.int64), spaces.Box(0.0, 2.0**40, (2,))),
    "planes of floats": (g.Box(0, 1, (3, 9, 9)), spaces.Box(0, 1, (9, 9, 3))),
    "discrete": (g.Discrete(5, start=3), spaces.Discrete(5)),
    "choices": (g.MultiDiscrete([[2, 3], [4, 5]]), spaces.MultiDiscrete((2, 3, 4, 5))),
    "bits": (g.MultiBinary((2, 3)), spaces.MultiBinary(6)),
    "dict": (
        g.Dict({"place": g.Discrete(4), "action_mask": g.Box(0, 1, (2,), np.int8)}),
        {"place": spaces.Discrete(4), "action_mask": spaces.Box(False, True, (2,), np.bool_)},
    ),
    "tuple": (
        g.Tuple((g.Box(0, 1, (2,)), g.Dict({"deep": g.Discrete(2)}))),
        (spaces.Box(0, 1, (2,)), {"deep": spaces.Discrete(2)}),
    ),
}


def same_space(ours, expected):
    for name in ("low", "high"):
        if hasattr(expected, name):
            np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name))
    assert (type(ours), ours.shape, np.dtype(ours.dtype)) == (
        type(expected),
        expected.shape,
        np.dtype(expected.dtype),
    )


@pytest.mark.parametrize("mode", [SAME_STEP, NEXT_STEP], ids=["same step", "next step"])
@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_observation_spaces(kind, mode):
    """Observations are converted, including final ones."""
    theirs, expected = OBSERVATIONS[kind]
    venv = gymnasium.vector.SyncVectorEnv([lambda: Spaced(theirs)] * 3, autoreset_mode=mode)
    env = envs.as_env(venv)
    jax.tree.map(same_space, env.observation_space, expected)
    ours = env.vector(3)
    obs, state = ours.reset(KEY)
    for _ in range(4):
        obs, state, *_, info = ours.step(KEY, state, jnp.zeros(3, int))
        for seen in (obs, info["final_observation"]):
            jax.tree.map(
                lambda x, s: (x.shape, x.dtype) == ((3, *s.shape), s.dtype) or pytest.fail(),
                seen,
                expected,
            )
            below = [
                (np.asarray(x) >= 0).all() and (np.asarray(x) < s.n).all()
                for x, s in zip(jax.tree.leaves(seen), jax.tree.leaves(expected), strict=True)
                if isinstance(s, spaces.Discrete)
            ]
            assert all(below)


def test_planes_first_are_moved_last():
    theirs = g.Box(0, 255, (4, 8, 9), np.uint8)
    leaf = host.observation_leaves(theirs, "planes")
    frames = np.arange(2 * 4 * 8 * 9, dtype=np.uint8).reshape(2, 4, 8, 9)
    np.testing.assert_array_equal(leaf.read(frames)[1, 5, 7], frames[1, :, 5, 7])


ACTIONS = [
    (g.Discrete(3, start=5), 2),
    (g.MultiDiscrete([[2, 3], [4, 5]]), [1, 2, 3, 4]),
    (g.MultiDiscrete([3, 4], start=[1, 7]), [2, 3]),
    (g.MultiBinary(3), [1, 0, 1]),
    (g.Box(-2.0, 3.0, (2,), np.float64), [-2.0, 3.0]),
]


@pytest.mark.parametrize(("theirs", "ours"), ACTIONS, ids=[str(a) for a, _ in ACTIONS])
def test_actions_arrive_in_the_environment_s_own_space(theirs, ours):
    one = g.Box(0, 1, (1,))
    venv = envs.as_env(lambda: Spaced(one, theirs)).vector(2)
    _, state = venv.reset(KEY)
    jax.block_until_ready(venv.step(KEY, state, jnp.array([ours, ours])))


def test_a_text_beside_other_entries_is_left_out():
    """As MiniGrid's mission; a loaded agent accepts the complete observation."""
    space = g.Dict({"image": g.Box(0, 9, (2,)), "mission": g.Text(20), "facing": g.Discrete(4)})
    with pytest.warns(UserWarning, match=r"\['mission'\] .* the network does not receive them"):
        env = envs.as_env(lambda: Spaced(space))
    assert sorted(env.observation_space) == ["facing", "image"]
    obs, _ = env.vector(2).reset(KEY)
    assert sorted(obs) == ["facing", "image"]


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (g.Text(5), None, "no fixed shape"),
        (g.Dict({"a": g.Sequence(g.Discrete(2))}), None, r"\['a'\] of .* no fixed shape"),
        (g.Box(0, 1, (1,)), g.Dict({"a": g.Discrete(2)}), "supported are Discrete"),
        (g.Box(0, 1, (1,)), g.Box(0, 9, (1,), np.int32), "Box of floats"),
    ],
)
def test_spaces_without_a_counterpart_are_refused(observations, actions, message):
    with pytest.raises(InvalidEnvironment, match=message):
        envs.as_env(lambda: Spaced(observations, actions))


def settings(env="gymnasium:CartPole-v1", updates=2, **values):
    values = {"preset": "none", "num_envs": 2, "num_steps": 8, "hidden": (8,), **values}
    size = values["num_envs"] * values["num_steps"]
    return configs.make(env=env, total_timesteps=updates * size, **values)


def test_vmapped_agents_are_refused_with_the_reason():
    train = make_train(settings())
    with pytest.raises(
        InvalidEnvironment, match=r"a state that JAX cannot copy.*one after the other"
    ):
        jax.vmap(train)(jax.random.split(KEY, 2))
    with pytest.raises(InvalidEnvironment, match="cannot be vmapped over agents"):
        run_seeds(settings(), 2)


def test_the_sweep_s_command_refuses_before_it_compiles(tmp_path, capsys):
    from ppo_jax.cli.sweep import main as sweep

    with pytest.raises(SystemExit) as stopped:
        sweep(["--env", "gymnasium:CartPole-v1", "--run-dir", str(tmp_path / "sweep")])
    assert stopped.value.code == 2
    assert "one after the other" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_state_that_is_not_the_environments_own_is_refused(collected):
    policy, params, states, _ = collected
    venv = envs.as_env(Counting).vector(ENVS)
    obs, state = venv.reset(KEY)
    result = jax.block_until_ready(venv.step(KEY, state, jnp.zeros(ENVS, int)))
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"reset 1, step 0, but .* reset 1, step 1"
    ):
        jax.block_until_ready(venv.step(KEY, state, jnp.zeros(ENVS, int)))
    fresh = rollout.restart(KEY, states[-1], env=venv, policy=policy)
    np.testing.assert_array_equal(fresh.env_state, [2, 0])
    assert fresh.episodes.start.all() and fresh.moments is states[-1].moments
    jax.block_until_ready(venv.step(KEY, fresh.env_state, jnp.zeros(ENVS, int)))
    assert result[1].tolist() == [1, 1]


def test_an_exception_in_the_environment_is_told_as_it_is():
    class Broken(Counting):
        count = 0

        def step(self, action):
            self.count += 1
            if self.count > 9:  # after the first check
                raise OSError("a wheel fell off")
            return super().step(action)

    with pytest.raises(jax.errors.JaxRuntimeError, match="OSError: a wheel fell off"):
        jax.block_until_ready(jax.jit(make_train(settings(), Broken))(KEY))


def test_compiling_does_not_touch_the_environments():
    config = settings()
    program = build(config, Counting)
    before = Counting.steps
    compiled = compile_run(config, program)
    assert Counting.steps == before
    state = compiled.init()
    assert Counting.steps == before
    state, *_ = compiled.chunk(state, compiled.floats, jnp.int32(2))
    jax.block_until_ready(state)
    assert Counting.steps == before + 2 * config.num_envs * config.num_steps
    assert state.rollout.env_state.tolist() == [1, 2 * config.num_steps]


def test_a_run_resumes_with_new_episodes(tmp_path):
    config = settings(updates=3)
    options = RunOptions(run_dir=tmp_path / "run", eval_episodes=3)
    assert train(config, options).exit_code == 0
    config = settings(updates=6)
    assert train(config, RunOptions(resume=tmp_path / "run", eval_episodes=3)).exit_code == 0
    rows = [json.loads(r) for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["update"] for r in rows] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["env_steps"] == 96 and summary["eval_episodes"] == 3
    # Update 4 starts new episodes: those that end in it have at most its 8 steps.
    assert rows[3]["episode_length"] is None or rows[3]["episode_length"] <= 8


@pytest.mark.parametrize("mode", [SAME_STEP, NEXT_STEP], ids=["same step", "next step"])
def test_evaluation_counts_each_environment_s_first_episode(mode):
    """Episodes run in groups of the number of copies; every return is that of a whole episode."""
    env = envs.as_env(vector(mode, 2))
    policy = make_policy(env.observation_space, env.action_space, hidden=(8,))
    params = policy.init(KEY, jnp.zeros((2, 2)))
    result = evaluate(KEY, params, rollout.Moments(), env=env, policy=policy, episodes=5)
    assert result.episode_return.shape == (5,) and result.finished.all()
    for earned, length in zip(result.episode_return, result.episode_length, strict=True):
        first = (float(earned) - length * (length + 1) / 2) / float(length)  # i % 10
        assert 3 <= length <= 6 and first in range(10)


def test_an_environment_that_makes_its_own_vectors_has_the_protocol():
    """All methods are checked, because they are called if `makes_vectors` exists."""
    env = envs.as_env(Counting)
    assert envs.makes_vectors(env) and not envs.makes_vectors(envs.make("CartPole-v1"))
    members = ("name", "observation_space", "action_space", "time_limit", "vector", "evaluation",
               "side_by_side", "picture")  # fmt: skip
    assert {*members} == {n for n in vars(envs.VectorMaker) if not n.startswith("_")}
    for kind in (host.HostEnv, jaxmarl.JaxMarlEnv):
        assert {*members} <= {*dir(kind), *kind.__dataclass_fields__}, kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("modes", [None, [], ["human"]])
def test_an_environment_that_cannot_be_drawn_says_so(monkeypatch, modes):
    class Undrawn(Spaced):
        metadata: ClassVar = {} if modes is None else {"render_modes": modes}

        def __init__(self):
            super().__init__(g.Box(0, 1, (2,)))

    monkeypatch.setitem(gymnasium.registry, "Undrawn-v0", gymnasium.envs.registration.EnvSpec(
        "Undrawn-v0", Undrawn))  # fmt: skip
    env = envs.make("gymnasium:Undrawn-v0")
    listed = ".human." if modes else "none"
    said = f"Undrawn-v0 cannot be rendered: it has no render_mode .rgb_array.; .*lists {listed}"
    with pytest.raises(InvalidEnvironment, match=said):
        env.picture()


@pytest.mark.filterwarnings("ignore")
def test_an_environment_that_forgets_to_list_its_pictures_is_drawn(monkeypatch):
    class Drawn(Counting):
        metadata: ClassVar = {}

    monkeypatch.setitem(gymnasium.registry, "Drawn-v0", gymnasium.envs.registration.EnvSpec(
        "Drawn-v0", Drawn))  # fmt: skip
    vector = envs.make("gymnasium:Drawn-v0").picture().vector(1)
    _, state = vector.reset(KEY)
    assert vector.render(state).shape == (4, 4, 3)


def test_frames_are_the_environment_s_own():
    policy = make_policy(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2), hidden=(8,))
    params = policy.init(KEY, jnp.zeros((1, 2)))
    drawn = functools.partial(record, KEY, params, rollout.Moments(), policy=policy)
    frames = drawn(env=envs.as_env(lambda: Counting(render_mode="rgb_array")))
    assert 3 <= len(frames) <= 6
    assert [f[0, 0, 0] for f in frames] == list(range(len(frames)))
    with pytest.raises(InvalidEnvironment, match='render_mode="rgb_array"'):
        drawn(env=envs.as_env(Counting))


def test_reset_pools_are_refused():
    with pytest.raises(InvalidEnvironment, match="omit reset_pool"):
        build(settings(reset_pool=4))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Counting(), "pass a function that makes one"),
        (lambda: 3, "makes a int, which is not a Gymnasium environment"),
        (lambda: gymnasium.make("CartPole-v9"), "cannot be made"),
        (vector(num_envs=5), "has 5 environments, but num_envs is 2"),
        (vector(DISABLED, 2), "must reset its environments automatically"),
    ],
    ids=["one", "no environment", "fails", "too many", "no restarts"],
)
def test_objects_that_do_not_fit_are_refused(env, message):
    with pytest.raises(InvalidEnvironment, match=message):
        program = build(settings(), env)
        jax.eval_shape(program.init, KEY)


def test_names_are_gymnasium_s():
    assert "gymnasium:CartPole-v1" in envs.names("gymnasium")
    assert envs.canonical("gymnasium:CartPole-v1") == "gymnasium:CartPole-v1"
    with pytest.raises(UnknownEnvironment, match="CartPole-v1"):
        envs.make("gymnasium:CartPole-v7")
    with pytest.raises(InvalidEnvironment, match="cannot be made.*pole"):
        envs.make("gymnasium:CartPole-v1", pole="long")
    with pytest.raises(InvalidEnvironment, match="unknown backend"):
        envs.make("gymnasium:CartPole-v1", backend="asink")
    assert envs.make("gymnasium:CartPole-v1").time_limit == 500
    assert envs.make("gymnasium:CartPole-v1", max_episode_steps=7).time_limit == 7


def steps_of(env, count=30):
    venv = env.vector(2)
    obs, state = venv.reset(KEY)
    rows = [obs]
    for i in range(count):
        obs, state, *rest, info = venv.step(KEY, state, jnp.full(2, i % 2))
        rows.append((obs, *rest, info))
    return jax.tree.map(np.asarray, rows)


def test_processes_are_started_afresh_whenever_that_is():
    """JAX has started threads, which a fork would break, with a warning by Python."""
    expected = steps_of(envs.make("gymnasium:CartPole-v1"))
    env = envs.make("gymnasium:CartPole-v1", backend="async")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = steps_of(env)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    groups = {os.getpgid(c.process.pid) for c in env.vector(2)._venv.copies}
    assert len(groups) == 2 and os.getpgid(0) not in groups  # Ctrl-C reaches none
    env.vector(2).close()


def test_a_vectorised_environment_restarts_one_step_later():
    env = envs.make("gymnasium:CartPole-v1", backend="vector_entry_point")
    rows = steps_of(env)[1:]
    done = np.stack([r[2] | r[3] for r in rows])
    valid = np.stack([r[-1]["valid"] for r in rows])
    assert done.any() and valid[0].all()
    np.testing.assert_array_equal(~valid[1:], done[:-1])


def test_returns_are_reported_in_raw_rewards():
    env = envs.as_env(Counting)
    env = envs.HostEnv("halved", env.spaces, env.start, transform_reward=lambda r: r / 2)
    _, _, states, trajectories = collect(env, rollouts=1)
    raw = collect(envs.as_env(Counting), rollouts=1)
    np.testing.assert_allclose(2 * trajectories[0].reward, raw[3][0].reward)
    np.testing.assert_array_equal(
        states[-1].metrics["episode_return"], raw[2][-1].metrics["episode_return"]
    )


@pytest.mark.learning
def test_cartpole_on_the_host_is_learned(tmp_path):
    config = configs.make("cartpole", total_timesteps=150_000)
    config = configs.from_flat(configs.to_flat(config) | {"env": "gymnasium:CartPole-v1"})
    assert train(config, RunOptions(run_dir=tmp_path / "run", eval_episodes=32)).exit_code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eval_return_mean"] >= 400
