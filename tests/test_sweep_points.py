"""Parsing of --vary, and the resulting configurations."""

import math

import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax.config import ConfigError
from ppo_jax.config.options import show
from ppo_jax.sweep.points import configure, grid, label, parse_vary, sample
from ppo_jax.sweep.store import Spec

KNOWN = configs.fields("ppo")


def vary(*words):
    return parse_vary(words, KNOWN)


def test_lists_are_crossed_the_last_fastest():
    points = grid(vary("learning_rate=1e-4,3e-4", "clip_eps=0.1,0.2,0.3"))
    assert len(points) == 6
    assert points[:2] == [
        {"learning_rate": 1e-4, "clip_eps": 0.1},
        {"learning_rate": 1e-4, "clip_eps": 0.2},
    ]


def test_nothing_varied_is_one_point():
    assert grid(vary()) == [{}]
    assert label({}) == "baseline"


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("num-envs=4,8", [4, 8]),
        ("total_timesteps=5e5,1e6", [500_000, 1_000_000]),
        ("hidden=64x64,32", [(64, 64), (32,)]),
        ("env_args=size=42+frames=3,size=84", [("size=42", "frames=3"), ("size=84",)]),
        ("target_kl=none,0.02", [None, 0.02]),
        ("normalize_obs=true,False", [True, False]),
        ("activation=tanh,relu", ["tanh", "relu"]),
        ("anneal_timesteps=inf,1e6", [math.inf, 1e6]),
    ],
)
def test_values_have_the_type_of_their_option(word, values):
    (found,) = vary(word).values()
    assert found == values
    assert [type(v) for v in found] == [type(v) for v in values]


def test_a_value_reads_as_it_is_written():
    for word in (
        "hidden=64x64,32",
        "env_args=size=42+frames=3,size=84",
        "target_kl=none,0.02",
        "learning_rate=0.00025,1e-05",
    ):
        ((name, values),) = vary(word).items()
        assert vary(f"{name}={','.join(map(show, values))}") == {name: values}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("learning_rate", "give name=a,b,c"),
        ("learning_rat=1", "did you mean learning_rate"),
        ("seed=1,2", "--seeds"),
        ("learning_rate=fast", "'fast' is not a number or a schedule"),
        ("num_envs=1.5", "'1.5' is not of type int"),
        ("num_envs=log:1:8", "only real numbers have a range"),
        ("normalize_obs=maybe", "'maybe' is not of type bool"),
        ("learning_rate=log:0:1", "must be above 0"),
        ("learning_rate=log:1e-2:1e-4", "low must be less than high"),
        ("learning_rate=log:1e-4", "a range is log:low:high"),
        ("learning_rate=log:1e-4:1e-2:1", "at least two values"),
        ("learning_rate=1e-3,0.001", "repeats a value"),
        ("gamma=lin:0.99999991:0.99999994:4", "are equal to six digits"),
    ],
)
def test_what_cannot_vary_is_refused(word, says):
    with pytest.raises(ConfigError, match=says):
        grid(vary(word))


def test_a_name_given_twice_is_refused():
    with pytest.raises(ConfigError, match="twice"):
        vary("clip_eps=0.1", "clip-eps=0.2")


def test_a_range_is_cut_or_sampled():
    assert grid(vary("learning_rate=log:1e-4:1e-2:3")) == [
        {"learning_rate": 1e-4},
        {"learning_rate": 1e-3},
        {"learning_rate": 1e-2},
    ]
    assert [p["gamma"] for p in grid(vary("gamma=lin:0.9:1:3"))] == [0.9, 0.95, 1.0]
    with pytest.raises(ConfigError, match="--sample"):
        grid(vary("learning_rate=log:1e-4:1e-2"))
    with pytest.raises(ConfigError, match="gives a number of values"):
        sample(vary("learning_rate=log:1e-4:1e-2:3"), 2)
    (ends,) = vary("gamma=lin:0.9:0.9999999").values()
    assert ends.at(1.0) == 0.9999999  # rounding does not leave the range


@pytest.mark.parametrize("sampler", ["sobol", "uniform"])
def test_random_search_covers_its_space_evenly(sampler):
    varied = vary("learning_rate=log:1e-5:1e-1", "gamma=lin:0.9:1", "num_envs=4,8")
    points = sample(varied, 256, sampler)
    assert points == sample(varied, 256, sampler)  # determined by the seed
    assert points != sample(varied, 256, sampler, seed=1)
    decades = np.floor(np.log10([p["learning_rate"] for p in points]))
    shares = np.unique(decades, return_counts=True)[1] / 256
    np.testing.assert_allclose(shares, 0.25, atol=0.08)
    assert np.mean([p["gamma"] for p in points]) == pytest.approx(0.95, abs=0.01)
    assert np.mean([p["num_envs"] == 4 for p in points]) == pytest.approx(0.5, abs=0.1)


def test_sobol_is_more_even_than_chance():
    varied = vary("learning_rate=log:1e-5:1e-1")
    shares = {}
    for sampler in ("sobol", "uniform"):
        rates = [p["learning_rate"] for p in sample(varied, 64, sampler)]
        counts, _ = np.histogram(np.log10(rates), bins=16, range=(-5, -1))
        shares[sampler] = counts.std()
    assert shares["sobol"] < 0.5 < shares["uniform"]


def test_points_are_distinct():
    varied = vary("clip_eps=0.1,0.2", "num_envs=4,8")
    points = sample(varied, 4)
    assert len({str(p) for p in points}) == 4
    with pytest.raises(ConfigError, match="only 4 combinations"):
        sample(varied, 5)
    with pytest.raises(ConfigError, match="values to draw from"):
        sample({}, 5)


def test_a_point_that_cannot_work_is_named():
    base = configs.make(preset="none")
    with pytest.raises(ConfigError, match="configuration num_envs=3 minibatches=5: .* divide"):
        configure(base, {"num_envs": 3, "minibatches": 5})
    assert configure(base, {"clip_eps": 0.3}).hyper.clip_eps == 0.3


def test_an_option_that_is_younger_than_a_sweep_changes_nothing_in_it():
    """The digest of an earlier version: new options must be added to store.YOUNGER."""
    config = configs.make(preset="none", num_envs=8, num_steps=8, total_timesteps=640)
    known = "ed887afb222fc2f04bed9550ae72ac02b839739559343fd5f4bd08ceafe0b4d4"
    assert Spec((), (config,), (0, 1), 4, 10).digest == known
