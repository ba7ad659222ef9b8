"""The precision of matrix products: it applies to all of them, and is stored with a run."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppo_jax
from ppo_jax import agent, precision
from ppo_jax import config as configs
from ppo_jax.cli import sweep as command
from ppo_jax.cli import train as train_command
from ppo_jax.config import ConfigError
from ppo_jax.envs import spaces
from ppo_jax.evaluate import evaluate, record
from ppo_jax.export import interface
from ppo_jax.runs import checkpoint
from ppo_jax.runs.checkpoint import CheckpointError
from ppo_jax.runs.folder import checkpoints_of, read_config
from ppo_jax.sweep.store import YOUNGER, Spec, read_sessions
from ppo_jax.train import build, make_train

SMALL = {"preset": "none", "num_envs": 4, "num_steps": 8, "total_timesteps": 64, "hidden": (8,)}
FLAGS = ["--preset", "none", "--num-envs", "4", "--num-steps", "8", "--total-timesteps", "64",
         "--hidden", "8", "--eval-episodes", "2"]  # fmt: skip
UNEVALUATED = [*FLAGS[:-1], "0"]
NETWORKS = {
    "mlp": {"env": "CartPole-v1"},
    "cnn": {"env": "Breakout-MinAtar", "network": "minatar"},
    "gru": {"env": "CartPole-v1", "memory": "gru", "memory_size": 8, "minibatches": 2},
    "trpo": {"env": "Pendulum-v1", "algorithm": "trpo"},
    "q(s, a)": {"env": "CartPole-v1", "algorithm": "actor_critic"},
}
KEY = jax.random.key(0)


class Rotation:
    """An environment that computes a matrix product."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(2)
    time_limit = 5
    params = ()

    def __init__(self):
        self.traced = set()

    def turn(self, x):
        self.traced.add(jax.config.jax_default_matmul_precision)
        return jnp.array([[0.6, -0.8], [0.8, 0.6]]) @ x

    def reset(self, key, params):
        obs = self.turn(jax.random.normal(key, (2,)))
        return obs, (obs, jnp.int32(0))

    def step(self, key, state, action, params):
        obs, time = self.turn(state[0]), state[1] + 1
        return obs, (obs, time), obs[0], jnp.bool_(False), time >= 5, {}

    def render(self, state):
        return np.zeros((2, 2, 3), np.uint8)


def precisions(function, *arguments):
    """The precisions of the matrix products and convolutions in a function's program."""
    lines = jax.jit(function).lower(*arguments).as_text().splitlines()
    products = [x for x in lines if "stablehlo.dot_general" in x or "stablehlo.convolution" in x]
    assert products
    names = ("HIGHEST,", "HIGH,", "DEFAULT,")
    return {next((n for n in names if n in line), "not said") for line in products}


def evaluation(program):
    """(the evaluation of a program's policy as a function, its arguments)."""
    state = jax.eval_shape(program.init, KEY)

    def play(key, params, moments):
        return evaluate(
            key, params, moments, env=program.env, policy=program.policy, episodes=2, max_steps=3
        )

    return play, KEY, state.learner.params, state.rollout.moments


@pytest.mark.parametrize("network", NETWORKS)
def test_every_product_of_training_and_evaluation_has_it(network):
    for name, expected in (("highest", {"HIGHEST,"}), ("default", {"DEFAULT,"})):
        program = build(configs.make(**SMALL | NETWORKS[network], matmul_precision=name))
        assert precisions(program.step, jax.eval_shape(program.init, KEY)) == expected
        if name == "highest" or network == "mlp":  # the same policies as in training
            assert precisions(*evaluation(program)) == expected


def test_an_environment_computes_with_it_too():
    env = Rotation()
    config = configs.make(**SMALL, matmul_precision="high")
    program = build(config, env)
    state = jax.eval_shape(program.init, KEY)
    assert precisions(program.init, KEY) == {"HIGH,"}
    assert precisions(program.restart, state) == {"HIGH,"}
    assert precisions(program.step, state) == {"HIGH,"}
    assert precisions(*evaluation(program)) == {"HIGH,"}
    assert precisions(make_train(config, env), KEY) == {"HIGH,"}
    assert precision.of(program.algorithm.update) == "high"


def test_a_recording_has_it():
    env = Rotation()
    program = build(configs.make(**SMALL, matmul_precision="highest"), env)
    state = jax.jit(program.init)(KEY)
    env.traced.clear()
    learned = (state.learner.params, state.rollout.moments)
    record(KEY, *learned, env=env, policy=program.policy, max_steps=3)
    assert env.traced == {"highest"}


def test_default_is_jaxs_own_setting_and_the_others_win_over_it():
    programs = {n: build(configs.make(**SMALL, matmul_precision=n)) for n in precision.PRECISIONS}
    state = jax.eval_shape(programs["default"].init, KEY)
    with jax.default_matmul_precision("highest"):
        assert precision.in_effect("default") == "highest"
        assert precisions(programs["default"].step, state) == {"HIGHEST,"}
        assert precisions(programs["high"].step, state) == {"HIGH,"}
        assert precision.in_effect("high") == "high"
    assert precision.in_effect("default") == "default"
    policy = programs["default"].policy
    assert precision.apply("default", policy) is policy  # the same functions: the same programs


def test_a_compiled_program_is_not_taken_for_that_of_another_precision():
    square = jax.jit(lambda x: x @ x)
    x = jnp.ones((2, 2))
    square(x)
    assert precisions(precision.apply("highest", square), x) == {"HIGHEST,"}
    assert precisions(square, x) == {"DEFAULT,"}


def test_a_precision_replaces_the_one_that_was_applied_earlier():
    functions = {"square": lambda x: x @ x, "name": "square", "nothing": None}
    once = precision.apply("high", functions)
    twice = precision.apply("highest", once)
    assert precision.of(once["square"]) == "high" and precision.of(twice["square"]) == "highest"
    assert precisions(twice["square"], jnp.ones((2, 2))) == {"HIGHEST,"}
    assert (twice["name"], twice["nothing"]) == ("square", None)


def train(*flags):
    with pytest.raises(SystemExit) as stop:
        train_command.main([str(f) for f in flags])
    return stop.value.code


def content(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def precise(tmp_path_factory):
    path = tmp_path_factory.mktemp("precise") / "run"
    assert train(*FLAGS, "--matmul-precision", "highest", "--run-dir", path) == 0
    return path


def test_the_files_of_a_run_say_it(precise):
    assert content(precise / "config.json")["config"]["matmul_precision"] == "highest"
    assert content(precise / "config.json")["sessions"][0]["matmul_precision"] == "highest"
    assert content(precise / "summary.json")["matmul_precision"] == "highest"


def test_summaries_say_what_was_in_effect(tmp_path):
    with jax.default_matmul_precision("bfloat16"):
        assert train(*UNEVALUATED, "--run-dir", tmp_path) == 0
    assert content(tmp_path / "config.json")["config"]["matmul_precision"] == "default"
    assert content(tmp_path / "summary.json")["matmul_precision"] == "bfloat16"


def test_a_loaded_agent_and_what_is_exported_have_it(precise):
    obs, start = np.zeros((2, 4), np.float32), np.ones(2, bool)
    loaded = ppo_jax.load(precise)
    assert precisions(loaded._act, KEY, (), obs, start) == {"HIGHEST,"}
    parts = agent.read_parts(precise)
    assert precisions(interface.function(parts), obs) == {"HIGHEST,"}
    parts = parts._replace(policy=build(configs.make(**SMALL)).policy)
    assert precisions(interface.function(parts), obs) == {"DEFAULT,"}


def test_a_resumed_run_keeps_it_and_refuses_another(precise, capsys):
    words = ("--resume", precise, "--total-timesteps", 128, "--eval-episodes", 0)
    assert train(*words, "--matmul-precision", "high") == 2
    assert "matmul_precision (was highest, given high)" in capsys.readouterr().err
    assert train(*words) == 0
    assert content(precise / "summary.json")["matmul_precision"] == "highest"


def test_what_is_no_precision_is_refused(tmp_path, capsys):
    assert train("--matmul-precision", "hihgest", "--run-dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("hihgest", *precision.PRECISIONS))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="it must be one of default, high, highest"):
        configs.make(matmul_precision="hihgest")


def test_runs_older_than_the_option_load_and_go_on(tmp_path):
    assert train(*UNEVALUATED, "--run-dir", tmp_path) == 0
    old = content(tmp_path / "config.json")
    del old["config"]["matmul_precision"], old["format"]
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(old))
    for path in (tmp_path / "checkpoints").glob("*.json"):
        manifest = content(path)
        del manifest["identity"]["matmul_precision"], manifest["sha256"]
        path.write_text(json.dumps(manifest | {"sha256": checkpoint._digest_of(manifest)}))
    config = read_config(tmp_path)
    assert ppo_jax.load(tmp_path)(np.zeros(4, np.float32)) in (0, 1)
    shapes = jax.eval_shape(build(config).init, KEY)
    with pytest.raises(CheckpointError, match=r"matmul_precision \('default' there, 'high' here\)"):
        checkpoints_of(tmp_path, dataclasses.replace(config, matmul_precision="high")).restore(
            shapes
        )
    assert train("--resume", tmp_path, "--total-timesteps", 128) == 0
    assert content(tmp_path / "config.json")["config"]["matmul_precision"] == "default"


def test_points_of_a_sweep_may_have_different_ones(tmp_path):
    words = [*FLAGS, "--vary", "matmul_precision=default,highest", "--seeds", "2"]
    assert command.run_command([*words, "--run-dir", str(tmp_path)]) == 0
    both = "default, highest"
    assert content(tmp_path / "summary.json")["last_session"]["matmul_precision"] == both
    assert read_sessions(tmp_path)[0]["matmul_precision"] == both
    kept = [read_config(p).matmul_precision for p in sorted((tmp_path / "agents").iterdir())]
    assert kept == ["default", "highest"]
    # On a CPU all three are full float32.
    rows = [line.split(",", 1) for line in (tmp_path / "results.csv").read_text().splitlines()[1:]]
    first, second = ([rest for point, rest in rows if point == p] for p in "01")
    assert first == second and first


def test_chunks_of_sweeps_older_than_the_option_count():
    spec = Spec((), (configs.make(**SMALL),), (0,), 0, 10)
    old = spec.to_json()
    for name in YOUNGER:
        del old["configs"][0][name]
    assert spec.digest == hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    other = dataclasses.replace(spec, configs=(configs.make(**SMALL, matmul_precision="high"),))
    assert other.digest != spec.digest
