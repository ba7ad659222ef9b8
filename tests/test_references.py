"""User-defined environments, networks and algorithms: by reference, from Python, and the rules for
importing them."""

import dataclasses
import functools
import json
import shutil
import stat
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import documents
import ppo_jax
import ppo_jax.export
from ppo_jax import algorithms, envs
from ppo_jax import config as configs
from ppo_jax.algorithms import ppo
from ppo_jax.cli import flags
from ppo_jax.cli import train as train_command
from ppo_jax.cli.evaluate import main as evaluate
from ppo_jax.cli.export import main as export
from ppo_jax.cli.main import main as front
from ppo_jax.cli.plot import main as plot
from ppo_jax.cli.sweep import main as sweep
from ppo_jax.cli.train import main as train
from ppo_jax.config import ConfigError, references
from ppo_jax.distributions import Categorical
from ppo_jax.envs import InvalidEnvironment, UnknownEnvironment
from ppo_jax.envs.gymnax import _gymnax
from ppo_jax.networks import make_policy
from ppo_jax.runs import trust
from ppo_jax.runs.folder import read_config, write_config
from ppo_jax.runs.restore import load
from ppo_jax.runs.trust import Given
from ppo_jax.sweep import run_seeds, run_sweep
from ppo_jax.train import build, make_train

ENVIRONMENT = '''
from pathlib import Path

import gymnasium
import gymnax
import jax.numpy as jnp
from ppo_jax.envs import spaces

Path("imported").touch()  # executed by the import


class Corridor:
    """Walk to the right end; `info` has the form of gymnax 1.0."""

    name, time_limit, params = "Corridor", 20, ()

    def __init__(self, length=5):
        self.length = length
        self.observation_space = spaces.Box(0, 1, (length,))
        self.action_space = spaces.Discrete(2)
        self.table = jnp.eye(length)

    def reset(self, key, params):
        return self.table[0], {"place": jnp.int32(0), "time": jnp.int32(0)}

    def step(self, key, state, action, params):
        place = jnp.clip(state["place"] + 2 * action - 1, 0, self.length - 1)
        state = {"place": place, "time": state["time"] + 1}
        end = place == self.length - 1
        late = state["time"] >= 20
        return self.table[place], state, end * 1.0, end, late, {}


class Outer:
    Inner = Corridor


def make(length=4):
    return Corridor(length)


ready = Corridor(3)
Cart = gymnax.environments.classic_control.cartpole.CartPole


class Host(gymnasium.Env):
    def __init__(self, size=2):
        self.observation_space = gymnasium.spaces.Box(0, 1, (size,))
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.low, 1.0, True, False, {}


def host(size=3):
    return Host(size)


number = 3
'''
NETWORK = """
from ppo_jax.networks import make_policy


def small(observation_space, action_space, config):
    return make_policy(observation_space, action_space, hidden=config.hidden, activation="relu")
"""
ALGORITHM = """
from __future__ import annotations

import dataclasses

from ppo_jax.algorithms import ppo
from ppo_jax.config.options import option


@dataclasses.dataclass(frozen=True)
class Config(ppo.Config):
    boost: float = option(1.5, "factor of the learning rate", low=0)
    plain: int | None = None


def make(policy, config, optimizer=None):
    rate = config.learning_rate * config.boost
    return ppo.make(policy, dataclasses.replace(config, learning_rate=rate), optimizer)


class Method:
    Config = Config
    make = staticmethod(make)
"""
SMALL = {"num_envs": 2, "num_steps": 8, "total_timesteps": 32, "hidden": (4,), "preset": "none"}
SMALL |= {"minibatches": 2, "epochs": 1}
FLAGS = ["--preset", "none", "--num-envs", "2", "--num-steps", "8", "--total-timesteps", "32"]
FLAGS += ["--hidden", "4", "--minibatches", "2", "--epochs", "1"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The current directory, with user-defined modules; the names of the modules are unique to each
    test, because a process imports a module once."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    for name, text in (("net", NETWORK), ("world", ENVIRONMENT), ("method", ALGORITHM)):
        (folder / f"my_{name}.py").write_text(text)
    yield folder
    for name in {*sys.modules} - before:
        if name.startswith(("my_", "broken", "other")):
            del sys.modules[name]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        train([*FLAGS, *words])
    return stop.value.code


def refused(capsys, command, *words: str) -> str:
    """The single line of an error message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        command([*words])
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and message.startswith("error: ") and "\n" not in message, message
    return message


# What a reference is


def test_a_reference_is_imported_from_the_current_directory(mine):
    assert str(mine) not in sys.path
    assert references.load("my_world:Outer.Inner", "environment").__name__ == "Corridor"
    assert references.load("my_method", "algorithm").__name__ == "my_method"
    assert (mine / "imported").exists()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("./my_world.py:Corridor", r"names a file; name its module: write my_world:Corridor"),
        ("my_world:", "is not a reference"),
        ("my_world:Corridor()", "is not a reference"),
        ("__main__:Corridor", "__main__ is another module in every process"),
        ("my_word:Corridor", r"there is no module my_word, .*did you mean my_world or my_"),
        ("my_world.sub:Corridor", r"there is no module my_world.sub, "),
        ("my_world:Coridor", r"module my_world, read from .*my_world.py, has no Coridor; did you"),
        ("my_world:Corridor.size", r"has no Corridor.size; "),
        ("broken_syntax:X", r"importing broken_syntax raised SyntaxError: .*broken_syntax.py"),
        ("broken_import:X", r"importing broken_import raised ModuleNotFoundError: No module named "
         r"'not_there' \(broken_import.py, line 2\)"),
        ("broken_value:X", r"raised ValueError: two lines \(broken_value.py, line 1\)"),
        ("broken_exit:X", r"importing broken_exit raised SystemExit: 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_line_that_says_why(mine, reference, message):
    for name, text in (
        ("syntax", "def f(:"),
        ("import", "\nimport not_there"),
        ("value", 'raise ValueError("two\\nlines")'),
        ("exit", "import sys\nsys.exit(3)"),
    ):
        (mine / f"broken_{name}.py").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        references.load(reference, "environment")
    assert "\n" not in str(error.value) and str(error.value).startswith("environment ")


def test_a_module_that_hides_the_one_that_was_named_is_refused(mine, tmp_path, monkeypatch):
    (mine / "random.py").write_text("X = 1")
    with pytest.raises(ConfigError, match=r"module random was imported from .*random.py, not from"):
        references.load("random:X", "environment")
    references.load("my_net:small", "policy")
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "my_net.py").write_text("small = None")
    monkeypatch.chdir(other)
    message = rf"my_net was imported from {mine}/my_net.py, not from {other}/my_net.py"
    with pytest.raises(ConfigError, match=message):
        references.load("my_net:small", "policy")


def test_a_module_keeps_its_arrays_when_it_is_imported_while_a_run_is_traced(mine):
    (mine / "my_table.py").write_text("import jax.numpy as jnp\nTABLE = jnp.arange(3)\n")
    jax.jit(lambda x: x + references.load("my_table:TABLE", "policy"))(1)
    assert sys.modules["my_table"].TABLE.tolist() == [0, 1, 2]


# Environments


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("my_world:Corridor", {}, (5,)),
        ("my_world:Corridor", {"length": 7}, (7,)),
        ("my_world:Outer.Inner", {}, (5,)),
        ("my_world:make", {}, (4,)),
        ("my_world:make", {"length": 6}, (6,)),
        ("my_world:ready", {}, (3,)),
        ("my_world:Cart", {}, (4,)),
        ("my_world:Host", {}, (2,)),
        ("my_world:Host", {"size": 4}, (4,)),
        ("my_world:host", {}, (3,)),
    ],
)
def test_each_kind_of_environment_is_made_by_its_reference(mine, name, arguments, shape):
    words = tuple(f"{n}={v}" for n, v in arguments.items())
    config = configs.make(env=name, env_args=words, **SMALL)
    assert envs.canonical(name) == name and config.env == name
    program = build(config)
    assert program.env.observation_space.shape == shape
    assert jax.eval_shape(program.init, jax.random.key(0)).rollout.obs.shape == (2, *shape)
    # The same as an object.
    maker = references.load(name, "environment")
    assert envs.as_env(maker, **arguments).observation_space.shape == shape


@pytest.mark.parametrize(
    ("env", "arguments", "error", "message"),
    [
        ("my_world:number", (), InvalidEnvironment, "environment int lacks reset, step, params"),
        ("my_world:ready", ("length=3",), InvalidEnvironment, "takes no arguments; omit len"),
        ("my_world:Corridor", ("size=3",), InvalidEnvironment, "Corridor cannot be made: Type"),
        ("my_world:Corridr", (), ConfigError, "has no Corridr; did you mean Corridor"),
        ("gymnasim:CartPole-v1", (), UnknownEnvironment,
         "unknown suite 'gymnasim'; there are: ppo_jax, .*there is no module 'gymnasim' to import"),
        ("gymnasium:my_net:Nothing-v0", (), UnknownEnvironment, "unknown environment"),
        ("gymnasium:my_nett:Nothing-v0", (), ConfigError, "there is no module my_nett"),
    ],
)  # fmt: skip
def test_what_is_no_environment_is_refused(mine, env, arguments, error, message):
    with pytest.raises(error, match=message):
        build(configs.make(env=env, env_args=arguments, **SMALL))


def test_gymnasium_imports_the_module_that_registers_an_id(mine):
    (mine / "my_ids.py").write_text(
        "import gymnasium, my_world\n"
        "gymnasium.register('Mine-v0', 'my_world:Host', max_episode_steps=3)\n"
    )
    assert envs.make("gymnasium:my_ids:Mine-v0").time_limit == 3


def test_an_environment_of_ones_own_has_no_preset_unless_one_is_named(mine):
    plain = configs.make(preset="none")
    pendulum, _ = _gymnax().make("Pendulum-v1")
    for env in (pendulum, "my_world:Corridor", references.load("my_world:Corridor", "environment")):
        found = configs.make(env=env)
        assert dataclasses.replace(found, env=plain.env) == plain
        tuned = configs.make("pong", env=env)
        assert tuned.hyper == configs.make("pong").hyper and tuned.env_args == ()
        assert tuned.env == found.env != "Pong"


# Networks


def test_a_network_is_a_function_or_a_policy(mine):
    config = configs.make(policy="my_net:small", **SMALL)
    small = references.load("my_net:small", "policy")
    state = make_train(config)(jax.random.key(0))[0]
    given = make_train(configs.make(**SMALL), policy=small)(jax.random.key(0))[0]
    env = envs.make("CartPole-v1")
    policy = make_policy(env.observation_space, env.action_space, hidden=(4,), activation="relu")
    same = make_train(configs.make(**SMALL), policy=policy)(jax.random.key(0))[0]
    other = make_train(configs.make(**SMALL))(jax.random.key(0))[0]
    leaves = lambda state: [np.asarray(x) for x in jax.tree.leaves(state.learner.params)]
    for found in (given, same):
        jax.tree.map(np.testing.assert_array_equal, leaves(found), leaves(state))
    assert any((a != b).any() for a, b in zip(leaves(other), leaves(state), strict=True))


def broken(**functions):
    """A function that makes the usual policy with some of its functions replaced."""

    def make(observation_space, action_space, config):
        policy = make_policy(observation_space, action_space, hidden=(4,))
        return policy._replace(**{n: functools.partial(f, policy) for n, f in functions.items()})

    return make


def act_without_core(policy, params, core, obs, start):
    return policy.act(params, core, obs, start)[1:]


def act_with_columns(policy, params, core, obs, start):
    core, dist, value = policy.act(params, core, obs, start)
    return core, dist, value[:, None]


def act_with_another_core(policy, params, core, obs, start):
    return jnp.zeros(3), *policy.act(params, core, obs, start)[1:]


def act_on_one(policy, params, core, obs, start):
    core, dist, value = policy.act(params, core, obs, start)
    return core, Categorical(dist.logits[0]), value


def act_with_logits(policy, params, core, obs, start):
    core, dist, value = policy.act(params, core, obs, start)
    return core, dist.logits, value


def act_with_other_actions(policy, params, core, obs, start):
    core, dist, value = policy.act(params, core, obs, start)
    return core, Categorical(jnp.stack([dist.logits] * 2, 1)), value


def apply_without_value(policy, params, inputs):
    return policy.apply(params, inputs)[0]


def init_that_fails(policy, key, obs):
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda observations, actions: None, "cannot be called: .*; it must be a ppo_jax"),
        (lambda *arguments: None, "of type NoneType; it must be a ppo_jax.networks.Policy, or"),
        (lambda *arguments: 1 / 0, r"raised ZeroDivisionError: division by zero \(test_references"),
        (broken(act=act_without_core), r"act\(.*\) returned a tuple of 2; it must return \("),
        (broken(act=act_with_columns), r"returned a value of shape \(3, 1\); .* of shape \(3,\)"),
        (broken(act=act_with_another_core), "returned a core of .*, but init_core returns"),
        (broken(act=act_on_one), r"distribution of act has a (log_prob|entropy) of shape"),
        (broken(act=act_with_logits), "distribution of act is a .* without noise, sample_from"),
        (broken(act=act_with_other_actions), r"distribution of act has a .* of shape \(3, 2\)"),
        (broken(apply=apply_without_value), r"apply\(.*\) returned a Categorical; it must return"),
        (broken(init=init_that_fails), r"init\(key, obs\) raised KeyError: 'weights' \(test_ref"),
    ],
)  # fmt: skip
def test_what_a_policy_function_returned_is_looked_at(policy, message):
    with pytest.raises(ConfigError, match=message) as error:
        build(configs.make(**SMALL), policy=policy)
    assert "\n" not in str(error.value)


def test_a_policy_that_is_none_is_refused(mine):
    with pytest.raises(ConfigError, match="policy my_world:number is a int; it must be a ppo_jax"):
        build(configs.make(policy="my_world:number", **SMALL))
    with pytest.raises(ConfigError, match="there is no module small"):
        build(configs.make(policy="small", **SMALL))


def test_a_network_with_memory_learns_from_sequences(mine):
    (mine / "my_memory.py").write_text(
        "from ppo_jax.networks import make_recurrent_policy\n"
        "def gru(observations, actions, config):\n"
        "    return make_recurrent_policy(observations, actions, memory='gru', memory_size=4)\n"
    )
    config = configs.make(policy="my_memory:gru", **SMALL)
    state, _ = jax.jit(make_train(config))(jax.random.key(0))
    assert jax.tree.leaves(state.rollout.core)[0].shape == (2, 4)
    with pytest.raises(ConfigError, match="num_envs = 2 cannot be divided into 4 minibatches"):
        build(configs.make(**SMALL | {"policy": "my_memory:gru", "minibatches": 4}))


def test_a_critic_of_another_kind_than_the_algorithm_needs_is_refused(mine):
    values = SMALL | {"policy": "my_net:small", "algorithm": "actor_critic"}
    del values["minibatches"], values["epochs"]
    with pytest.raises(ConfigError, match="requires critic 'q'"):
        build(configs.make(**values))


# Algorithms


@pytest.mark.parametrize("name", ["my_method", "my_method:Method"])
def test_the_fields_of_an_algorithm_of_ones_own_are_options(mine, name, capsys):
    config = configs.make(algorithm=name, boost=2.0, **SMALL)
    assert config.algorithm == name and config.hyper.boost == 2.0
    assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))) == config
    words = [*FLAGS, "--algorithm", name, "--boost", "3", "--plain", "4"]
    parsed, _ = train_command._parse(words, flags.base_config(words), {})
    assert (parsed.hyper.boost, parsed.hyper.plain) == (3.0, 4)
    static, floats = configs.split(config)
    assert floats["boost"] == 2.0 and configs.merge(static, floats).hyper.boost == 2.0
    with pytest.raises(ConfigError, match="boost is -1.0; it must be >= 0"):
        configs.make(algorithm=name, boost=-1, **SMALL)
    with pytest.raises(ConfigError, match="unknown option 'bost'; did you mean boost"):
        configs.make(algorithm=name, bost=1, **SMALL)
    with pytest.raises(SystemExit):
        train(["--algorithm", name, "--help"])
    assert "factor of the learning rate" in capsys.readouterr().out


def test_an_algorithm_of_ones_own_computes_what_it_says(mine):
    params = lambda **values: (
        make_train(configs.make(**SMALL | values))(jax.random.key(0))[0].learner.params
    )
    boosted = params(algorithm="my_method", boost=2.0, learning_rate=1e-3)
    jax.tree.map(np.testing.assert_array_equal, boosted, params(learning_rate=2e-3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is module my_bad and has no Config; an algorithm is a module or an object with"),
        ("class Config: pass\n", "has no make"),
        ("class Config: pass\nmake = print", "is not a dataclass"),
        ("@dataclass\nclass Config:\n    gamma: float = 0.9\nmake = print", "is mutable"),
        ("@frozen\nclass Config:\n    rate: float = 0.9\nmake = print", "no field gamma, the disc"),
        ("@frozen\nclass Config:\n    gamma: float\nmake = print", "'gamma' in .* has no default"),
        ("@frozen\nclass Config:\n    gamma: dict = None\nmake = print",
         "the field 'gamma' .* has the type .*dict.*; an option is a bool"),
        ("@frozen\nclass Config:\n    gamma: float = 0.9\n    env: str = ''\nmake = print",
         "has a field 'env', a name that every run"),
        ("@frozen\nclass Config:\n    gamma: float = 0.9\n    hidden: int = 1\nmake = print",
         "has a field 'hidden', a name that every run"),
        ("@frozen\nclass Config:\n    gamma: float = 0.9\n    num_updates: int = 1\nmake = print",
         "has a field 'num_updates', a name that every run"),
        ("@frozen\nclass Config:\n    gamma: float = 0.9\n    preset: str = ''\nmake = print",
         "has a field 'preset', a name that every run"),
        ("@frozen\nclass Config:\n    gamma: float = 0.9\n    check: int = 1\nmake = print",
         "has a field 'check', the name of a hook"),
        ("@frozen\nclass Config:\n    gamma: float = 0.9\nmake = print",
         r"make of algorithm my_bad .* of type NoneType; it must return ppo_jax.Algorithm"),
    ],
)  # fmt: skip
def test_what_is_no_algorithm_is_refused(mine, text, message):
    (mine / "my_bad.py").write_text(
        "import dataclasses\nfrom dataclasses import dataclass\n"
        f"frozen = dataclass(frozen=True)\n{text}"
    )
    values = {n: v for n, v in SMALL.items() if n not in ("minibatches", "epochs")}
    with pytest.raises(ConfigError, match=message):
        build(configs.make(algorithm="my_bad", **values))


def test_an_option_of_runs_is_no_option_of_an_algorithm(tmp_path):
    """For user-defined and registered algorithms, and also from Python, where there are no
    flags."""
    field = ("eval_every", int, 5)
    own = dataclasses.make_dataclass("Config", [field], bases=(ppo.Config,), frozen=True)
    config = configs.make(algorithm=SimpleNamespace(Config=own, make=ppo.make), **SMALL)
    with pytest.raises(ConfigError, match="has a field 'eval_every', which is an option of every"):
        ppo_jax.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_neither_algorithm_nor_module_is_unknown(mine):
    for name in ("ppoo", "ppoo:Method"):
        with pytest.raises(ConfigError, match=f"unknown algorithm '{name}'; .*no module 'ppoo'"):
            configs.make(preset="none", algorithm=name)


# Objects from Python


def test_objects_are_kept_by_the_name_that_imports_them(mine):
    world = references.load("my_world", "environment")
    method = references.load("my_method", "algorithm")
    small = references.load("my_net:small", "policy")
    for obj, name in (
        (world.Corridor, "my_world:Corridor"),
        (world.Corridor(), "my_world:Corridor"),
        (world.make, "my_world:make"),
        (small, "my_net:small"),
        (method, "my_method"),
        (method.Method, "my_method:Method"),
        ("any:text", "any:text"),
        (_gymnax().make("CartPole-v1")[0], "gymnax.environments.classic_control.cartpole:CartPole"),
    ):
        assert references.name_of(obj) == name
    config = configs.make(env=world.Corridor(), policy=small, algorithm=method, **SMALL)
    names = ("my_world:Corridor", "my_net:small", "my_method")
    assert (config.env, config.policy, config.algorithm) == names


@pytest.mark.parametrize("kind", ["arguments", "lambda", "main", "made", "policy", "namespace"])
def test_what_no_name_imports_is_a_text_that_holds_in_this_process(mine, kind, monkeypatch):
    world = references.load("my_world", "environment")
    made = ModuleType("my_made")
    exec("class Mine: pass", vars(made))
    monkeypatch.setitem(sys.modules, "my_made", made)
    main = type("Mine", (), {"__module__": "__main__"})
    env = envs.make("CartPole-v1")
    obj = {
        "arguments": world.Corridor(9),
        "lambda": lambda: world.Corridor(9),
        "main": main,
        "made": made.Mine,
        "policy": make_policy(env.observation_space, env.action_space),
        "namespace": SimpleNamespace(Config=ppo.Config, make=ppo.make),
    }[kind]
    text = references.name_of(obj)
    assert references.is_text(text) and not references.is_reference(text)
    assert references.name_of(obj) == text and references.resolve(text, "policy") is obj
    assert references.name_of(lambda: 0) != references.name_of(lambda: 0)


def test_an_object_is_trained_with_what_it_is(mine):
    world = references.load("my_world", "environment")
    config = configs.make(env=world.Corridor(9), **SMALL)
    assert build(config).env.length == 9
    assert build(configs.make(**SMALL), env=world.Corridor(8)).env.length == 8
    method = SimpleNamespace(Config=ppo.Config, make=ppo.make)
    config = configs.make(algorithm=method, **SMALL)
    assert config.hyper == ppo.Config(minibatches=2, epochs=1)
    jax.block_until_ready(make_train(config, algorithm=method)(jax.random.key(0)))
    other = SimpleNamespace(Config=references.load("my_method", "algorithm").Config, make=ppo.make)
    with pytest.raises(ConfigError, match=r"needs my_method.Config: make the configuration with"):
        build(config, algorithm=other)


@pytest.mark.slow
def test_sweeps_take_objects(mine):
    world, method = (references.load(f"my_{n}", "environment") for n in ("world", "method"))
    small = references.load("my_net:small", "policy")
    config = configs.make(**SMALL)
    _, alone = run_seeds(config, 2, env=world.Corridor(), policy=small)
    points = [{"policy": small}, {"policy": None}]
    points, both = run_sweep(config, points, 2, env=world.Corridor())
    assert [p["policy"] for p in points] == ["my_net:small", None]
    np.testing.assert_array_equal(alone["loss"], both["loss"][0])
    assert (both["loss"][0] != both["loss"][1]).any()
    config = configs.make(algorithm=method, **SMALL)
    _, varied = run_sweep(config, {"boost": [1.0, 2.0]}, 2, algorithm=method)
    assert varied["loss"].shape == (2, 2, 2)
    with pytest.raises(ConfigError, match="policy= is given and also varies"):
        run_sweep(config, {"policy": [small]}, 2, policy=small)


@pytest.mark.slow
def test_metrics_count_environment_steps(mine):
    config = configs.make(**SMALL)
    _, metrics = jax.jit(make_train(config))(jax.random.key(0))
    assert metrics["env_step"].tolist() == [16, 32] and metrics["env_step"].dtype == jnp.int32
    keys = jax.random.split(jax.random.key(0), 3)
    _, metrics = jax.jit(jax.vmap(make_train(config)))(keys)
    assert metrics["env_step"].tolist() == [[16, 32]] * 3
    assert run_seeds(config, 3)[1]["env_step"].tolist() == [[16, 32]] * 3
    points = [{}, {"num_steps": 16, "total_timesteps": 64}]
    assert run_sweep(config, points, 2)[1]["env_step"].tolist() == [[[16, 32]] * 2, [[32, 64]] * 2]


# Names that installed packages register


@pytest.fixture
def installed(mine, monkeypatch):
    """An installed package with entry points in all groups."""
    folder = mine.parent / "site"
    (folder / "my_package-1.0.dist-info").mkdir(parents=True)
    for name in ("net", "world", "method"):
        (mine / f"my_{name}.py").rename(folder / f"my_{name}.py")
    (folder / "my_package-1.0.dist-info" / "METADATA").write_text(
        "Name: my-package\nVersion: 1.0\n"
    )
    (folder / "my_package-1.0.dist-info" / "entry_points.txt").write_text(
        "[ppo_jax.envs]\nLane-v0 = my_world:Corridor\n"
        "[ppo_jax.policies]\ntiny = my_net:small\n"
        "[ppo_jax.algorithms]\nboosted = my_method\n"
    )
    monkeypatch.syspath_prepend(folder)
    return folder


def test_installed_packages_register_names(installed, capsys):
    words = ["--env", "Lane-v0", "--env-args", "length=6", "--policy", "tiny"]
    words += ["--algorithm", "boosted", "--boost", "2", "--eval-episodes", "2", "--run-dir", "run"]
    assert run(*words) == 0
    # A registered name is that of an installed package: no key, no signature.
    assert "signature" not in json.loads(Path("run/config.json").read_text())
    assert not trust.key_path().exists()
    config, program, _ = load(Path("run"))
    assert (config.env, program.env.length) == ("Lane-v0", 6)
    assert envs.canonical("Lane-v0") == "Lane-v0" and algorithms.get("boosted")
    with pytest.raises(UnknownEnvironment, match="did you mean Lane-v0"):
        envs.make("Lane-v1")
    with pytest.raises(ConfigError, match="unknown algorithm 'bosted'; did you mean boosted"):
        configs.make(algorithm="bosted")


def test_the_current_directory_registers_nothing(installed, monkeypatch):
    assert "Lane-v0" in references.registered("environment")
    monkeypatch.chdir(installed)
    assert not trust.code({"config": {"env": "CartPole-v1"}})
    assert trust.code({"config": {"algorithm": "boosted"}}) == [("algorithm", "boosted")]
    assert "Lane-v0" not in references.registered("environment")


def test_a_name_that_two_packages_register_is_refused(installed):
    (installed / "other-1.0.dist-info").mkdir()
    (installed / "other-1.0.dist-info" / "METADATA").write_text("Name: other\nVersion: 1.0\n")
    points = "[ppo_jax.envs]\nLane-v0 = other:Corridor\n"
    (installed / "other-1.0.dist-info" / "entry_points.txt").write_text(points)
    with pytest.raises(ConfigError, match="two installed packages register 'Lane-v0' in ppo_jax.e"):
        envs.make("Lane-v0")


# Trust


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for the first run of `made`, which is not trained again for every test."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def made(mine, kept):
    """A run of this user with user-defined parts, and the user's key."""
    words = ["--env", "my_world:Corridor", "--policy", "my_net:small", "--algorithm", "my_method"]
    key = trust.key_path()
    if (kept / "run").exists():
        shutil.copytree(kept / "run", "run")
        key.parent.mkdir(parents=True)
        shutil.copy(kept / "key", key)
    else:
        assert run(*words, "--run-dir", "run", "--eval-episodes", "2") == 0
        shutil.copy(key, kept / "key")
        shutil.copytree("run", kept / "run")
    return mine / "run"


def foreign(run: Path, **names: str) -> None:
    """Change a run's files as if another user had created it, with these parts."""
    path = run / "config.json"
    content = json.loads(path.read_text())
    content["config"] |= names
    path.write_text(json.dumps(content))


def forget(mine: Path) -> None:
    """As in a new process: none of the modules has been imported."""
    for name in [n for n in sys.modules if n.startswith(("my_", "other"))]:
        del sys.modules[name]
    (mine / "imported").unlink(missing_ok=True)


def test_a_run_of_ones_own_is_like_any_other(made, mine, capsys):
    forget(mine)
    content = json.loads((made / "config.json").read_text())
    names = ("my_world:Corridor", "my_net:small", "my_method")
    assert tuple(content["config"][n] for n in configs.CODE) == names
    assert len(content["signature"]) == 64
    assert refused_code(["--resume", str(made), "--total-timesteps", "64"], train) == 0
    assert refused_code([str(made), "--episodes", "2"], evaluate) == 0
    assert refused_code([str(made), "--format", "stablehlo"], export) == 0
    assert refused_code([str(made), "--out", "x.png"], plot) == 0
    agent = ppo_jax.load(made)
    assert agent(np.eye(5, dtype=np.float32)[0]) in (0, 1)


def refused_code(words, command) -> int:
    with pytest.raises(SystemExit) as stop:
        command(words)
    return stop.value.code


def test_a_file_of_weights_of_ones_own_loads(made, mine):
    ppo_jax.export.export(made, "safetensors")
    forget(mine)
    ppo_jax.load(made / "policy.safetensors")
    trust.key_path().unlink()
    with pytest.raises(ConfigError, match=r"policy.safetensors names code to import, my_world:Cor"):
        ppo_jax.load(made / "policy.safetensors")
    ppo_jax.load(made / "policy.safetensors", trust=True)


@pytest.mark.parametrize("part", ["env", "policy", "algorithm", "env_args", "signature", "key"])
def test_a_run_of_somebody_else_imports_nothing(made, mine, part, capsys):
    content = json.loads((made / "config.json").read_text())
    changed = {"env": "my_world:make", "policy": "my_world:make", "algorithm": "my_world:Outer"}
    changed |= {"env_args": ["length=4"]}
    if part in changed:
        content["config"][part] = changed[part]
    elif part == "signature":
        del content["signature"]
    else:
        trust.key_path().write_bytes(b"x" * 32)
    (made / "config.json").write_text(json.dumps(content))
    forget(mine)
    for command, words in (
        (train, ["--resume", str(made)]),
        (train, ["--config", str(made / "config.json")]),
        (evaluate, [str(made)]),
        (export, [str(made)]),
        (plot, [str(made)]),
    ):
        message = refused(capsys, command, *words)
        assert "names code to import, my_world:" in message and "--trust" in message
        assert f"--env {content['config']['env']}" in message
    for function in (ppo_jax.load, load, read_config):
        with pytest.raises(ConfigError, match=r"not signed with your key; .*trust=True"):
            function(made)
    assert not (mine / "imported").exists() and "my_world" not in sys.modules


def test_a_run_of_somebody_else_is_loaded_when_it_is_trusted_or_its_code_named_again(made, mine):
    trust.key_path().unlink()
    foreign(made, env="my_world:make")
    forget(mine)
    named = {"env": "my_world:make", "policy": "my_net:small", "algorithm": "my_method"}
    words = [w for n, v in named.items() for w in (f"--{n}", v)]
    for more in (words, ["--trust"]):
        forget(mine)
        assert refused_code([str(made), "--out", "x.png", *more], plot) == 0
        with pytest.raises(ConfigError, match="not signed"):
            load(made)
    with pytest.raises(ConfigError, match="names code to import, my_net:small, and"):
        load(made, **named | {"policy": None})
    foreign(made, env="my_world:Corridor")  # the environment of its checkpoints
    for given in (named | {"env": "my_world:Corridor"}, {"trust": True}):
        forget(mine)
        load(made, **given)
        ppo_jax.load(made, **given)
    for more in ([*words[2:], "--env", "my_world:Corridor"], ["--trust"]):
        assert refused_code([str(made), "--episodes", "2", *more], evaluate) == 0
        assert refused_code([str(made), "--out", "p", *more], export) == 0
    assert refused_code(["--resume", str(made), "--trust"], train) == 0
    load(made)  # it was resumed here, and signed by this user


def test_names_that_are_given_with_a_run_are_those_of_the_run(made, mine):
    with pytest.raises(ConfigError, match="env is my_world:make, but the run has my_world:C"):
        load(made, env="my_world:make")
    with pytest.raises(ConfigError, match="algorithm is ppo, but the run has my_method"):
        load(made, algorithm="ppo")
    world = references.load("my_world", "environment")
    assert load(made, env=world.Corridor())[1].env.length == 5


@pytest.mark.parametrize("name", ["gymnasium:my_world:Mine-v0", "my_world:Corridor"])
def test_a_file_of_options_names_no_code_by_itself(mine, name, capsys):
    (mine / "a.toml").write_text(f'env = "{name}"\n')
    message = refused(capsys, train, "--config", "a.toml")
    assert f"a.toml names code to import, {name}" in message
    assert not (mine / "imported").exists()
    words = ["--config", "a.toml", "--env", name]
    assert flags.base_config(words).env == name
    assert flags.base_config(["--config", "a.toml", "--trust"]).env == name
    # Nor by the arguments of a suite's environment.
    (mine / "b.toml").write_text('env = "gymnasium:Any-v0"\nenv_args = ["env_id=my_world:X"]\n')
    assert "env_id=my_world:X" in refused(capsys, train, "--config", "b.toml")


@pytest.mark.slow
def test_a_sweep_of_somebody_else_imports_nothing(mine, capsys):
    words = [*FLAGS, "--env", "my_world:Corridor", "--algorithm", "my_method"]
    words += ["--vary", "boost=1,2", "--seeds", "2", "--eval-episodes", "2", "--confirm", "2"]
    assert refused_code([*words, "--run-dir", "s"], sweep) == 0
    forget(mine)
    assert refused_code(["--run-dir", "s", "--resume"], sweep) == 0
    assert (mine / "imported").exists()
    (kept, _) = sorted((mine / "s" / "agents").iterdir())
    load(kept)
    trust.key_path().write_bytes(b"x" * 32)
    forget(mine)
    again = ["--run-dir", "s", "--resume"]
    message = refused(capsys, sweep, *again)
    assert "sweep.json names code to import, my_world:Corridor, my_method" in message
    assert "--vary" not in message and "--env my_world:Corridor --algorithm my_method" in message
    compared = ["--compare", "s", "s", "--run-dir", "c"]
    assert "names code" in refused(capsys, sweep, *compared)
    assert not (mine / "imported").exists()
    assert refused_code([*again, "--trust"], sweep) == 0
    trust.key_path().unlink()
    assert refused_code([*compared, "--trust"], sweep) == 0


def test_the_key_is_the_users_alone(made):
    path = trust.key_path()
    path.unlink()
    assert trust.sign({"config": {"env": "x:y"}})  # makes a key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_size == 32
    assert [p.name for p in path.parent.iterdir()] == ["key"]
    assert trust.check({"config": {"env": "x:y"}}, {"x:y"}, False, Path()) is None
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"the key .*/ppo_jax/key has mode 644, so that other"):
        load(made)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="is damaged: it must have 32 bytes"):
        load(made)


def test_without_a_place_for_a_key_no_run_is_the_users_own(mine, monkeypatch):
    content = {"config": {"env": "my_world:Corridor"}}
    (mine / "file").touch()
    monkeypatch.setattr(Path, "home", classmethod(_no_home))
    for folder in (str(mine / "file"), "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", folder)
        assert trust.sign(content) == ""
        with pytest.raises(ConfigError, match="not signed"):
            trust.check(content | {"signature": ""}, set(), False, Path("x"))


def _no_home(cls):
    raise RuntimeError("no home")


def test_the_key_is_in_the_home_directory_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trust.key_path() == tmp_path / ".config/ppo_jax/key"


def test_a_run_without_code_of_ones_own_needs_no_key(mine):
    write_config(configs.make(**SMALL), {}, mine)
    content = json.loads((mine / "config.json").read_text())
    assert "signature" not in content and not trust.key_path().exists()
    del content["config"]["policy"]  # as runs that predate the option and digests
    (mine / "manifest.json").unlink()
    (mine / "config.json").write_text(json.dumps(content))
    assert read_config(mine) == configs.make(**SMALL)


def test_callbacks_are_code_too(mine):
    content = {"config": {"env": "CartPole-v1"}, "run": {"callback": ["my_net:f"]}}
    with pytest.raises(ConfigError, match=r"names code to import, my_net:f.*--callback my_net:f"):
        trust.check(content, set(), False, Path("x"), callbacks=True)
    trust.check(content, set(), False, Path("x"))  # loading the agent imports no callbacks
    signed = content | {"signature": trust.sign(content)}
    trust.check(signed, set(), False, Path("x"), callbacks=True)
    given = flags.given_of(["--resume", "x", "--callback", "my_net:f", "my_net:g"])
    assert given.named == {"my_net:f", "my_net:g"}
    trust.check(content, given.named, given.trust, Path("x"), callbacks=True)


def test_reward_functions_are_code_too():
    content = {"stage": "ppo", "config": {"reward": ["models/a", "my_net:f"]}}
    with pytest.raises(ConfigError, match=r"names code to import, my_net:f, .*--reward my_net:f"):
        trust.check(content, set(), False, Path("x"))
    trust.check(content, {"my_net:f"}, False, Path("x"))


STRANGE = ["my_net:f", ["my_net:0"], ["my_net:"], ["my_net :f"], ["my_net:f.g"], ["a", "my_net:é!"]]


@pytest.mark.parametrize("reward", STRANGE)
def test_whatever_imports_a_module_is_code(reward):
    """A module is imported before the function is looked up in it."""
    content = {"stage": "ppo", "config": {"reward": reward}}
    with pytest.raises(ConfigError, match="names code to import, my_net"):
        trust.check(content, set(), False, Path("x"))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("config", "env", ["evilmod:f"]),
        ("config", "env", {"evilmod:f": 1}),
        ("config", "policy", ["evilmod:f"]),
        ("config", "algorithm", ["evilmod"]),
        ("config", "algorithm", "evilmod"),
        ("config", "env_args", "wrapper=evilmod:f"),
        ("config", "env_args", {"wrapper": "evilmod:f"}),
        ("config", "env_args", [["wrapper=evilmod:f"]]),
        ("config", "env", "gymnasium:evilmod:Id-v0"),
        ("run", "callback", "evilmod:f"),
        ("run", "callback", {"evilmod:f": 1}),
        ("run", "callback", [["evilmod:f"]]),
        ("run", "init_from", "evil"),
    ],
)
def test_values_of_a_strange_type_import_nothing(tmp_path, monkeypatch, section, name, value):
    """In the config.json of another user, for all functions that read it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "evilmod.py").write_text("open('imported', 'w').close()\nf = None\n")
    plain = configs.to_json(configs.make(total_timesteps=64, num_envs=2, num_steps=8))
    content = {"config": plain, "run": {}, "sessions": []}
    content[section] = content[section] | {name: value}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(content))
    commands = (evaluate, export, plot, train)
    for command, first in zip(commands, ([], [], [], ["--resume"]), strict=True):
        if section == "config" or command is train:
            with pytest.raises(SystemExit) as ended, warnings.catch_warnings(action="ignore"):
                command([*first, str(tmp_path / "run")])
            assert ended.value.code == 2
        assert not (tmp_path / "imported").exists()


def test_a_run_with_an_object_asks_for_it_again(mine):
    world = references.load("my_world", "environment")
    method = SimpleNamespace(Config=ppo.Config, make=ppo.make)
    config = configs.make(env=world.Corridor(7), algorithm=method, **SMALL)
    write_config(config, {}, mine)
    assert "signature" not in json.loads((mine / "config.json").read_text())
    references._OBJECTS.clear()  # as in another process
    with pytest.raises(ConfigError, match=r"algorithm <SimpleNamespace given .*again .*algorithm="):
        read_config(mine)
    found = read_config(mine, Given(algorithm=method))
    with pytest.raises(ConfigError, match=r"environment <Corridor given from Python.*, env=\.\.\."):
        build(found)
    found = read_config(mine, Given(env=world.Corridor(7), algorithm=method))
    assert found == config and build(found).env.length == 7


@pytest.mark.slow
def test_the_files_of_the_page_do_what_it_says(mine, monkeypatch):
    """docs/own_parts.md: its files are written, and its commands run in their folder."""
    page = documents.ROOT / "docs/own_parts.md"
    for name, text in documents.files(page).items():
        (mine / name).write_text(text)
    commands = {"ppo_jax.train": train, "ppo_jax.evaluate": evaluate, "ppo_jax.export": export}
    commands |= {"ppo_jax.plot": plot, "ppo_jax.sweep": sweep, "ppo_jax": front}
    lines = documents.commands(page)
    assert {line.split()[2] for line in lines} == commands.keys()
    for line in lines:
        if "--format onnx" not in line:
            _, _, module, *words = line.split()
            assert refused_code(words, commands[module]) == 0, line
