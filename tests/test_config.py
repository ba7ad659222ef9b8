"""Configurations: flat and nested forms, static and traced parts, and messages for invalid
values."""

import dataclasses
import json
import math

import jax
import pytest

from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS, ppo
from ppo_jax.cli.envs import _presets as listed_presets
from ppo_jax.config import ConfigError, TrainConfig
from ppo_jax.config.presets import PRESETS
from ppo_jax.config.train import preset_of
from ppo_jax.envs import canonical, make, suites


def test_defaults_are_those_of_the_algorithm():
    config = TrainConfig()
    assert config.hyper == ppo.Config()
    assert config.num_updates == config.total_timesteps // (config.num_envs * config.num_steps)


def test_make_puts_flat_names_where_they_belong():
    config = configs.make(env="Catch-bsuite", num_envs=8, gamma=0.5, hidden=(32,))
    assert (config.env, config.num_envs, config.hidden) == ("Catch-bsuite", 8, (32,))
    assert config.hyper.gamma == 0.5


def test_flat_and_json_are_lossless():
    config = configs.make(preset="none", anneal_timesteps=math.inf, target_kl=0.01)
    assert configs.from_flat(configs.to_flat(config)) == config
    assert configs.from_json(configs.to_json(config)) == config
    assert configs.to_json(config)["anneal_timesteps"] == "inf"


# Presets of an environment and an algorithm that have another preset as their default.
NOT_DEFAULT = {"pong_cnn"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_complete(name):
    values = PRESETS[name]
    assert values["algorithm"] in ALGORITHMS
    suite, colon, _ = values["env"].partition(":")
    if colon and not suites()[suite]:
        pytest.skip(f"suite {suite} is not installed")
    assert canonical(values["env"]).endswith(values["env"])
    config = configs.make(preset=name)
    default = configs.make(env=values["env"], algorithm=values["algorithm"])
    assert default == configs.make(preset=preset_of(values["env"], values["algorithm"]))
    assert (default == config) == (name not in NOT_DEFAULT)
    assert config.num_updates > 1


def test_the_first_preset_of_an_environment_is_listed_with_it():
    listed = listed_presets()
    assert listed["Pong"] == "pong" and listed["CartPole-v1"] == "cartpole"
    for env, name in listed.items():
        assert preset_of(env, "ppo") == name or not suites().get(env.partition(":")[0], True)


def test_presets_are_optional_and_overridden():
    assert configs.make(preset="none") == TrainConfig()
    tuned = configs.make(env="Pendulum-v1")
    assert tuned != configs.make(preset="none", env="Pendulum-v1")
    assert configs.make(env="Pendulum-v1", gamma=0.5).hyper.gamma == 0.5
    assert configs.make(env="gymnax:Pendulum-v1").hyper == tuned.hyper


def test_the_annealing_horizon_is_settled_by_the_length():
    config = configs.make(preset="none", total_timesteps=10_000)
    assert config.hyper.anneal_timesteps is None
    assert configs.resolve(config).hyper.anneal_timesteps == 10_000.0
    fixed = configs.make(preset="none", anneal_timesteps=5e5)
    assert configs.resolve(fixed) == fixed


def test_the_time_limit_is_settled_by_the_environment():
    """For algorithms that need a time limit, the environment provides it unless it is given; the
    file stores None."""
    config = configs.make(preset="none", algorithm="reinforce", num_steps=500)
    assert config.hyper.time_limit is None and configs.to_json(config)["time_limit"] is None
    assert configs.resolve(config).hyper.time_limit is None
    assert configs.resolve(config, make("CartPole-v1")).hyper.time_limit == 500
    given = configs.make(preset="none", algorithm="reinforce", num_steps=700, time_limit=600)
    assert configs.resolve(given, make("CartPole-v1")).hyper.time_limit == 600
    ppo = configs.make(preset="none")
    assert configs.resolve(ppo, make("CartPole-v1")) == configs.resolve(ppo)


def test_split_takes_the_floats_and_leaves_the_rest():
    config = configs.make(preset="none", learning_rate=1e-3, target_kl=0.02)
    static, floats = configs.split(config)
    assert floats["learning_rate"] == 1e-3 and floats["target_kl"] == 0.02
    assert "value_clip_eps" not in floats  # None selects another program
    assert configs.merge(static, floats) == configs.resolve(config)
    assert static.num_envs == config.num_envs
    other = configs.split(configs.make(preset="none", learning_rate=5e-3, target_kl=0.1))[0]
    assert static == other and hash(static) == hash(other)
    assert static != configs.split(configs.make(preset="none"))[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": "ppoo"}, "unknown algorithm 'ppoo'; did you mean ppo"),
        ({"learning_rat": 1}, "unknown option 'learning_rat'; did you mean learning_rate"),
        ({"gamma": 1.5}, "gamma is 1.5; it must be >= 0 and <= 1"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001; it must be > 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a number or a schedule"),
        ({"clip_eps": 0.0}, "clip_eps is 0.0; it must be > 0"),
        ({"clip_eps": None}, "clip_eps is None"),
        ({"target_kl": -1.0}, "target_kl is -1.0; it must be > 0"),
        ({"num_envs": 0}, "num_envs is 0; it must be >= 1"),
        ({"num_envs": 2.5}, "num_envs is 2.5; it must be of type int"),
        ({"num_envs": True}, "num_envs is True; it must be of type int"),
        ({"shared_torso": 1}, "shared_torso is 1; it must be of type bool"),
        ({"hidden": (64, -1)}, r"hidden is \(64, -1\); it must be >= 1"),
        ({"env_args": "size=42"}, "env_args is 'size=42'; it must be of type tuple"),
        ({"env_args": ("size",)}, "env_args has 'size'; each is NAME=VALUE, as in --env-args"),
        ({"env_args": ("size=4", "size=5")}, "env_args gives size twice"),
        ({"frame_mix": "sum"}, "frame_mix is 'sum'; it must be one of none, differences"),
        ({"activation": "tan"}, "activation is 'tan'; it must be one of tanh, relu"),
        ({"seed": -1}, "seed is -1; it must be >= 0"),
        (
            {"minibatches": 7},
            r"4 x 128 = 512 does not divide into 7 minibatches; nearest that do: \[2, 4, 8\]",
        ),
        ({"total_timesteps": 100}, "total_timesteps is 100, less than one rollout .* = 512"),
        ({"num_envs": 1, "num_steps": 4, "total_timesteps": 8}, "minibatches of a single sample"),
        ({"entropy_coef": -0.1}, "entropy_coef is -0.1; it must be >= 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0; it must be > 0"),
    ],
)
def test_what_cannot_work_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        configs.make(preset="none", **values)


def test_arguments_of_an_environment_are_read_as_json_or_text():
    words = ("size=42", "speed=1.5", "difficulty=hard", "flag=True", "other=false", "x=a=b", "y=")
    config = configs.make(env_args=list(words))
    assert config.env_args == words
    assert configs.env_kwargs(config) == {
        "size": 42, "speed": 1.5, "difficulty": "hard", "flag": True, "other": False,
        "x": "a=b", "y": "",
    }  # fmt: skip
    assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "cartpol"}, "unknown preset 'cartpol'; did you mean cartpole"),
        (
            {"preset": "cartpole", "env": "Pendulum-v1"},
            "preset 'cartpole' is for env CartPole-v1, not Pendulum-v1",
        ),
    ],
)
def test_presets_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        configs.make(**arguments)


def test_a_config_of_another_algorithm_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Other:
        gamma: float = 0.9

    with pytest.raises(ConfigError, match=r"needs ppo_jax.algorithms.ppo.Config"):
        configs.check(TrainConfig(hyper=Other()))


def test_tracers_are_not_looked_at():
    def run(rate):
        configs.check(TrainConfig(hyper=ppo.Config(learning_rate=rate)))
        return rate

    assert jax.jit(run)(0.1) == pytest.approx(0.1)
