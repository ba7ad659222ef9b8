"""The numerical guard: the first invalid number ends a run, which keeps the previous state."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppo_jax
from ppo_jax import config as configs
from ppo_jax import experiment, guard
from ppo_jax.agent import Agent, parts_of
from ppo_jax.envs import spaces
from ppo_jax.experiment import first_state
from ppo_jax.rlhf import supervised
from ppo_jax.runs import chunk, divergence, loop, replay
from ppo_jax.runs.job import UNITS, Diverged, Job
from ppo_jax.runs.metrics_log import read_metrics
from ppo_jax.runs.options import KeepOptions
from ppo_jax.runs.record import RunRecord
from ppo_jax.runs.restore import load
from ppo_jax.runs.signals import Signals
from ppo_jax.sweep.results import diverged
from ppo_jax.sweep.schedule import Schedule, group_agents
from ppo_jax.train import build
from ppo_jax.types import Batch
from probe_envs import Probe

BAD_STEP = 37
BAD = {"nan": jnp.nan, "inf": jnp.inf, "huge": 1e30}


class Turns(Probe):
    """Observes its own time. One of its four copies fails in its 37th step."""

    def __init__(self, what="reward", value=jnp.nan, **options):
        super().__init__(**options)
        self.__dict__ |= {"what": what, "value": value, "name": f"Turns-{what}"}

    def reset(self, key, params):
        return jnp.zeros(1), (jnp.zeros((), jnp.int32), jax.random.uniform(key) < 0.25)

    def step(self, key, state, action, params):
        time, chosen = state[0] + 1, state[1]
        bad = jnp.where(chosen & (time == BAD_STEP), jnp.float32(self.value), 0.0)
        obs = jnp.sin(time.astype(jnp.float32))[None] + (bad if self.what == "obs" else 0.0)
        reward = jnp.float32(1) + (bad if self.what == "reward" else 0.0)
        cut = (time == BAD_STEP) & (self.what == "final")
        obs = obs + jnp.where(cut, bad, 0.0)
        return obs, (time, chosen), reward, jnp.array(False), cut, {}


def small(env=None, **changes):
    values = {"num_envs": 8, "num_steps": 16, "total_timesteps": 8 * 16 * 5, "hidden": (8,)}
    named = {} if env is None else {"env": env}
    return configs.make(preset="none", **values | named | changes)


def train(path, env=None, *, options=None, **changes):
    options = {"eval_episodes": 0, "checkpoint_seconds": 1e9} | (options or {})
    return ppo_jax.run(small(env, **changes), path, env=env, **options)


def first_bad(env, **changes):
    """The index of the first copy that fails, in a run with seed 0."""
    config = small(env, **changes)
    chosen = first_state(config, build(config, env)).rollout.env_state
    leaves = [x for x in jax.tree.leaves(chosen) if x.dtype == bool and x.size == 8]
    return int(np.argmax(leaves[0]))


def rows(path):
    return list(read_metrics(path / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("what", "value", "says"),
    [
        ("reward", "nan", r"^rewards are not finite or .* at update 3 .*, followed by \d+ more"),
        pytest.param("reward", "huge", r"^rewards", marks=pytest.mark.slow),
        ("final", "nan", r"^values of the next state are not finite at update 3 "),
        pytest.param("obs", "inf", r"^observations are not finite at", marks=pytest.mark.slow),
    ],
)
def test_a_bad_number_of_an_environment_stops_the_run_at_the_state_before(
    tmp_path, what, value, says
):
    """Step 37 is in the third rollout of 16 steps; two rollouts are logged and saved."""
    with pytest.raises(Diverged, match=says) as failure:
        train(tmp_path / "a", Turns(what, BAD[value]), total_timesteps=8 * 16 * 5)
    text = str(failure.value)
    assert "(environment steps: 384)" in text and "\n" not in text
    assert f"saved in {tmp_path / 'a'}: the state after 256 environment steps" in text
    assert f"--resume {tmp_path / 'a'} --debug-nans" in text
    assert [r["update"] for r in rows(tmp_path / "a")] == [1, 2]
    assert all(np.isfinite(r["loss"]) for r in rows(tmp_path / "a"))
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (summary["status"], summary["env_steps"], summary["updates"]) == ("diverged", 256, 2)
    state = load(tmp_path / "a", env=Turns(what, BAD[value]))[2]
    assert int(state.update) == 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.learner.params))


@pytest.mark.slow
def test_the_state_before_is_that_of_a_shorter_run(tmp_path):
    env = Turns()
    with pytest.raises(Diverged):
        train(tmp_path / "a", env, anneal_timesteps=1e6)
    train(tmp_path / "b", env, anneal_timesteps=1e6, total_timesteps=8 * 16 * 2)
    states = [load(tmp_path / name, env=env)[2].learner for name in "ab"]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 4])
def test_parameters_beyond_all_measure_are_bad_although_they_are_finite(tmp_path, epochs):
    options = {"learning_rate": 3e38, "epochs": epochs, "minibatches": 1}
    # With one gradient step, the parameters are invalid first; with four, the second gradient.
    first = r"parameters\['actor'\]" if epochs == 1 else "gradients"
    with pytest.raises(Diverged, match=first + ".* at update 1 .*nothing is saved"):
        train(tmp_path / "a", "CartPole-v1", **options)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["status"] == "diverged" and summary["env_steps"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("value", "parts"), [("nan", 1), ("inf", 1), ("nan", 4)])
def test_debug_nans_names_environment_step_and_input(tmp_path, value, parts):
    env = Turns("reward", BAD[value])
    index = first_bad(env, parts=parts)
    with pytest.raises(Diverged) as failure:
        train(tmp_path / "a", env, options={"debug_nans": True}, parts=parts)
    said = str(failure.value)
    assert "origin: environment " in said and "Turns" in said
    assert f"returned reward {value} in environment {index} at step 5 of the rollout" in said
    steps = 2 * 128 + 4 * 8 + index + 1
    assert f"(environment steps: {steps})" in said and "for action " in said
    assert f"after observation [{np.sin(36.0):.6f}]" in said


@pytest.mark.slow
def test_debug_nans_on_resume_replays_from_the_last_good_state(tmp_path):
    env = Turns("obs")
    index = first_bad(env)
    with pytest.raises(Diverged):
        train(tmp_path / "a", env)
    with pytest.raises(Diverged) as failure:
        ppo_jax.run(small(env), resume=tmp_path / "a", env=env, debug_nans=True)
    said = str(failure.value)
    assert f"it returned observation nan in environment {index} at step 5" in said


@pytest.mark.slow
def test_debug_nans_names_the_network(tmp_path):
    """A large but valid weight, whose output exceeds float32: not an error of the environment."""
    config = small("Pendulum-v1", num_envs=4, total_timesteps=4 * 16 * 2)
    program = build(config)
    state = first_state(config, program)
    huge = jax.tree.map(lambda x: jnp.full_like(x, 9e17), state.learner.params)
    state = dataclasses.replace(state, learner=dataclasses.replace(state.learner, params=huge))
    said = failure_of(config, program, state, tmp_path)
    assert "origin: the network: its " in said and " at step 1 of the rollout" in said


@pytest.mark.slow
def test_debug_nans_names_the_gradient(tmp_path, monkeypatch):
    """An overflow in the loss alone."""
    from ppo_jax.algorithms import ppo

    make_loss = ppo.make_loss

    def broken(*arguments):
        loss_fn = make_loss(*arguments)

        def loss(params, rows):
            value, metrics = loss_fn(params, rows)
            worse = value + jnp.sqrt(jnp.sum(params["critic"]["head"]["bias"] * 0.0))
            return worse, metrics | {"loss": worse}

        return loss

    monkeypatch.setattr(ppo, "make_loss", broken)
    config = small("CartPole-v1")
    program = build(config)
    said = failure_of(config, program, first_state(config, program), tmp_path)
    assert "origin: the update: the gradient ['critic']" in said, said
    assert "is nan in gradient step 1" in said


def failure_of(config, program, state, path):
    job = experiment.job_of(config, program, 0)._replace(init=lambda: state)
    path.mkdir(exist_ok=True)
    options = KeepOptions(debug_nans=True, checkpoint_seconds=1e9)
    record = RunRecord(path, options, identity={}, about={}, config={}, quiet=True)
    with pytest.raises(Diverged) as failure:
        loop.run(job, record, signals=Signals())
    return str(failure.value)


# --- actions passed to environments ---------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "zero"), [(-np.inf, np.inf, 0.0), (10.0, 20.0, 10.0), (-3.0, -1.0, -1.0)]
)
def test_an_action_that_is_not_finite_is_replaced_by_a_legal_one(low, high, zero):
    action = jnp.array([[jnp.nan, 15.0], [jnp.inf, -jnp.inf]])
    found = guard.finite_action(action, spaces.Box(low, high, (2,)))
    np.testing.assert_array_equal(found, [[zero, 15.0], [zero, zero]])
    whole = jnp.array([[1, 2]])
    assert guard.finite_action(whole, spaces.MultiDiscrete((3, 3))) is whole


# --- the parts of the guard -----------------------------------------------------------------


def test_padding_may_hold_anything():
    x = jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0]])
    weight = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    assert not guard.check(guard.parts("rewards", x, weight=weight)).bad
    found = guard.check(guard.parts("rewards", {"a": x, "b": x * 0 + 1}, weight=1 - weight))
    assert found.bad and found.names == ("rewards['a']", "rewards['b']")


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_every_type_is_looked_at(dtype, value):
    good, bad = jnp.ones(3, dtype), jnp.array([1.0, value, 1.0], dtype)
    assert not guard.check(guard.parts("x", good)).bad and guard.check(guard.parts("x", bad)).bad


def test_hidden_metrics_come_back():
    metrics = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.array([1, 2]), "c": jnp.array(-jnp.inf)}
    hidden = guard.hide(metrics)
    assert not any(np.isnan(x).any() for x in hidden.values())
    jax.tree.map(np.testing.assert_array_equal, guard.show(hidden), metrics)


def counting(state, frozen, floats):
    value = jnp.where(state == 3, jnp.nan, state.astype(jnp.float32))
    return state + 1, {"height": value, "may": jnp.where(state == 1, jnp.nan, 0.0)}


def test_a_chunk_stops_before_the_first_bad_update():
    made = jax.jit(chunk.make_chunk(counting, 8, may_be_nan=("may",)))
    state, metrics, outcome = made(jnp.int32(0), (), 6)
    assert (int(state), int(outcome.made), bool(outcome.bad)) == (3, 3, True)
    shown = guard.show(metrics)
    np.testing.assert_array_equal(shown["height"][:4], [0, 1, 2, np.nan])
    np.testing.assert_array_equal(shown["may"][:3], [0, np.nan, 0])


def test_of_many_agents_the_others_go_on():
    made = chunk.make_chunk(counting, 8, may_be_nan=("may",), stop=False)
    state, metrics, outcome = jax.vmap(made, (0, None, None))(jnp.array([0, 4, 2]), (), 5)
    assert state.tolist() == [3, 9, 3] and outcome.bad.tolist() == [True, False, True]
    height = guard.show(metrics)["height"][:, :5]
    np.testing.assert_array_equal(np.isnan(height).sum(axis=1), [2, 0, 4])


def test_a_job_of_any_kind_is_guarded(tmp_path):
    job = Job(
        "counting", lambda: jnp.zeros((), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32),
        counting, 6, "sequences", 10, "height", may_be_nan=("may",),
    )  # fmt: skip
    record = RunRecord(tmp_path, KeepOptions(), identity={}, about={}, config={}, quiet=True)
    with pytest.raises(
        Diverged, match=r"^the metric height is not finite \(height nan\) at update 4"
    ):
        loop.run(job, record, signals=Signals())
    assert record.checkpoints.steps() == [3] and len(rows(tmp_path)) == 3


# --- agents, evaluations, sweeps, language models -------------------------------------------


@pytest.fixture(scope="module")
def damaged():
    """(configuration, program, state) of an agent whose parameters are NaN."""
    config = small("Pendulum-v1")
    program = build(config)
    state = first_state(config, program)
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.learner.params)
    return (
        config,
        program,
        dataclasses.replace(state, learner=dataclasses.replace(state.learner, params=bad)),
    )


@pytest.mark.slow
def test_an_evaluation_says_that_the_network_does_not_act(damaged):
    config, program, state = damaged
    with pytest.raises(FloatingPointError, match=r"not finite in 3 of 3 episodes of .*Pendulum"):
        experiment.job_of(config, program, 3).evaluate(state, 1)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_an_agent_says_so_too(damaged, env):
    """Discrete policies are checked, too: with NaN logits, argmax would select the first action."""
    config, program, state = damaged
    if env != config.env:
        config = small(env)
        program = build(config)
        state = first_state(config, program)
    agent = Agent(parts_of(config, program, state))
    obs = np.zeros(jax.tree.leaves(state.rollout.obs)[0].shape, np.float32)
    if env == "CartPole-v1":
        assert agent(obs).shape == (8,)
        obs[5] = np.nan
    with pytest.raises(FloatingPointError, match="action for observation [05] of 8 is not finite"):
        agent(obs)


@pytest.mark.slow
def test_one_agent_of_a_sweep_that_goes_bad_counts_as_diverged():
    """The parameters are finite, but at 3e38, although no number is NaN after one minibatch."""
    config = small(epochs=1, minibatches=1, total_timesteps=8 * 16 * 2)
    points = [dataclasses.replace(config.hyper, learning_rate=x) for x in (1e-3, 3e38)]
    configured = tuple(dataclasses.replace(config, hyper=hyper) for hyper in points)
    (group,) = group_agents(configured, (0,))
    finished = {f.chunk.agents: f for f in Schedule([group], jax.devices()[:1], 2).run()}
    (metrics,) = (f.metrics for f in finished.values())
    assert diverged(metrics).tolist() == [False, True]
    assert np.isfinite(metrics["loss"][0]).all()


@pytest.mark.slow
def test_jax_debug_nans_finds_nothing_in_a_run_that_is_well(tmp_path):
    """No episode ends here, so that half of the metrics have no value."""
    with jax.debug_nans(True):
        train(tmp_path / "a", TimeLess(), total_timesteps=8 * 16 * 2, options={"eval_episodes": 0})
    assert [r["episode_return"] for r in rows(tmp_path / "a")] == [None, None]
    assert [r["explained_variance"] for r in rows(tmp_path / "a")] != [0, 0]


class TimeLess(Turns):
    """All numbers are valid, and no episode ends."""

    def __init__(self):
        super().__init__("nothing")


def test_supervised_steps_are_guarded():
    config = supervised.Config(learning_rate=3e38, batch_size=2, updates=2)
    rows_ = Batch(jnp.ones((4, 3)), (), (), (), (), (), jnp.ones((4, 1)))

    def loss(params, rows):
        value = jnp.mean((rows.obs @ params["w"]) ** 2)
        return value, {"loss": value}

    state = supervised.init(jax.random.key(0), {"w": jnp.ones(3)}, config)
    step = supervised.make_step(loss, config)
    state, metrics, found = jax.jit(step)(state, {"rows": rows_})
    assert np.isfinite(metrics["loss"]) and found.bad
    assert [n for n, bad in zip(found.names, found.flags, strict=True) if bad] == [
        "parameters['w']"
    ]


@pytest.mark.slow
def test_a_host_environment_is_watched_while_it_runs(tmp_path):
    gymnasium = pytest.importorskip("gymnasium")

    class Bad(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,))
        action_space = gymnasium.spaces.Discrete(2)
        made = 0

        def __init__(self):
            self.number, self.t = Bad.made, 0
            Bad.made += 1

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.t += 1
            obs = np.full(2, self.t / 100, np.float32)
            reward = np.nan if self.t == BAD_STEP and self.number % 4 == 2 else 1.0
            return obs, reward, False, False, {}

    vector = gymnasium.vector.SyncVectorEnv([Bad] * 4)
    with pytest.raises(Diverged) as failure:
        train(tmp_path / "a", vector, num_envs=4, num_steps=16, options={"debug_nans": True})
    said = str(failure.value)
    assert "returned reward nan in environment " in said and "at step 5 of the rollout" in said
    assert "saved in" in said and "the state after 128 environment steps" in said


@pytest.mark.parametrize("leaf", [("obs", "observation"), ("final", "final observation")])
def test_origins_name_what_an_environment_returned(leaf):
    recorder = replay.Recorder()
    given = {"taken": np.zeros(2), "value": np.zeros(2)}
    recorder("act", {"obs": np.zeros((2, 1)), **given})
    bad = {leaf[0]: {"a": np.array([[0.0], [np.nan]])}}
    recorder("step", bad | {"done": np.ones(2, bool)})
    unit = next(iter(UNITS))
    job = types.SimpleNamespace(source="environment e", unit=unit, units_per_update=8)
    assert f"it returned {leaf[1]}['a'] nan in environment 1" in replay.origin(job, recorder, 0)


def wrong(*names, job=None, **metrics):
    found = guard.Found(jnp.array(True), np.ones(len(names), bool), names)
    job = job or Job("j", None, None, None, 9, "env_steps", 8, "loss", may_be_nan=("may",))
    bad = divergence.bad_values(job, found, metrics)
    return divergence.message(job, bad, 2, saved="nothing is saved", hint="")


@pytest.mark.parametrize(
    ("names", "metrics", "says"),
    [
        (["rewards"], {}, "rewards are not finite or beyond 1e+18 in absolute value at"),
        (["optimiser[0]", "parameters['w']", "values"], {}, "values are not finite at update 3 ("),
        (["parameters['w']"], {"grad_norm": np.nan}, "gradients are not finite (grad_norm nan) at"),
        (["observations['a']", "rewards"], {}, "observations['a'] is not finite at update 3 ("),
        (["parameters['w']", "optimiser[0]"], {"may": np.nan, "loss": 1.0}, "parameters['w'] is"),
        (["values of the next state"], {"loss": np.inf}, "values of the next state are not finite"),
    ],
)
def test_a_message_names_what_came_first_and_counts_the_rest(names, metrics, says):
    text = wrong(*names, **metrics)
    assert text.startswith(says)
    more = len(names) + sum(not np.isfinite(x) for n, x in metrics.items() if n != "may") - 1
    assert (f", followed by {more} more; that update" in text) == (more > 0)


@pytest.mark.parametrize(
    ("saved", "pure", "path", "says"),
    [
        (3, True, "a b", "train --resume 'a b' --debug-nans"),
        (0, True, "a", "start again with --debug-nans"),
        (3, False, "a", "start again with --debug-nans"),
        (3, True, None, ""),
    ],
)
def test_a_message_says_how_to_see_the_origin(saved, pure, path, says):
    """Gymnasium environments are not part of the state, so their updates cannot be repeated."""
    record = types.SimpleNamespace(resume="train", path=path, saved=saved)
    job = types.SimpleNamespace(pure=pure)
    expected = says and f"To find its origin: {says}"
    assert divergence.how_to_see(job, record) == expected
