"""Options: their allowed values, parsing, and messages."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.cli import flags
from ppo_jax.cli import rlhf as language
from ppo_jax.cli.sweep import PointOptions
from ppo_jax.config import TrainConfig
from ppo_jax.config.options import (
    Bounds,
    ConfigError,
    check,
    coerce,
    did_you_mean,
    guess,
    kind,
    option,
    parse,
    show,
    to_json,
    whole,
)
from ppo_jax.experiment import RunOptions
from ppo_jax.rlhf.folder import RunOptions as LanguageOptions
from ppo_jax.sweep.session import SweepOptions


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        (Bounds(0, 1, False, None), (0, 0.5, 1), (-0.1, 1.1, math.nan, math.inf), ">= 0 and <= 1"),
        (Bounds(0, None, True, None), (1e-9, 1e9), (0, -1, math.nan, math.inf), "> 0"),
        (Bounds(0, math.inf, True, None), (1, math.inf), (0, math.nan, -math.inf), "> 0"),
        (Bounds(None, None, False, None), (-5, 5), (math.nan, math.inf, -math.inf), "finite"),
        (Bounds(None, None, False, ("a", "b")), ("a",), ("c", ""), "one of a, b"),
    ],
)
def test_bounds(bounds, inside, outside, text):
    assert all(bounds.admits(x) for x in inside)
    assert not any(bounds.admits(x) for x in outside)
    assert str(bounds) == text


def test_hints_name_the_nearest_or_all():
    assert did_you_mean("gama", ["gamma", "seed"]) == "did you mean gamma?"
    assert did_you_mean("zzz", ["gamma", "seed"]) == "there are: gamma, seed"


@dataclasses.dataclass(frozen=True)
class Every:
    """One option of every type that the package uses."""

    flag: bool = option(False, "a truth value")
    name: str = option("a", "a name", choices=("a", "b"))
    count: int = option(1, "a whole number", low=1)
    count_or_none: int | None = option(None, "a whole number, or none", low=1)
    rate: float = option(0.1, "a real number", low=0)
    limit: float | None = option(None, "a real number, or none", high=math.inf)
    widths: tuple[int, ...] = option((64, 64), "whole numbers", low=1)
    words: tuple[str, ...] = option((), "texts")
    more: Annotated[tuple[str, ...], "appended"] = option((), "texts")
    folder: Path | None = option(None, "a path, or none")
    folders: tuple[Path, Path] | None = option(None, "two paths, or none")


FIELDS = {field.name: field for field in dataclasses.fields(Every)}


def test_kinds_are_read_from_annotations():
    assert {name: str(kind(field)) for name, field in FIELDS.items()} == {
        "flag": "bool",
        "name": "str",
        "count": "int",
        "count_or_none": "int | None",
        "rate": "float",
        "limit": "float | None",
        "widths": "tuple[int, ...]",
        "words": "tuple[str, ...]",
        "more": "tuple[str, ...]",
        "folder": "Path | None",
        "folders": "tuple[Path, ...] | None",
    }


def test_every_option_of_the_package_has_a_kind_and_a_default_that_it_admits():
    records = [TrainConfig, RunOptions, SweepOptions, PointOptions, LanguageOptions]
    records += [method.Config for method in ALGORITHMS.values()]
    records += [kinds for command in language.KINDS.values() for kinds in command]
    for record in records:
        for field in dataclasses.fields(record):
            if "bounds" in field.metadata:
                assert kind(field).base in (bool, str, int, float, Path), field
                check(field, field.default)


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("count", 5e5, 500_000),
        ("count", np.float64(5e5), 500_000),
        ("count_or_none", 1e3, 1000),
        ("count_or_none", None, None),
        ("widths", [64.0, 1e2], (64, 100)),
        ("rate", 1, 1.0),
        ("rate", 2**40, 2.0**40),
        ("limit", "inf", math.inf),
        ("words", ["a", "b"], ("a", "b")),
        ("folder", "runs/x", Path("runs/x")),
        ("folders", ["a", "b"], (Path("a"), Path("b"))),
    ],
)
def test_what_was_written_otherwise_is_taken_as_meant(name, given, meant):
    value = coerce(FIELDS[name], given)
    assert value == meant and type(value) is type(meant)
    check(FIELDS[name], value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flag", 1),
        ("flag", "true"),
        ("name", "c"),
        ("count", 1.5),
        ("count", True),
        ("count", "3"),
        ("count", 0),
        ("count", None),
        ("rate", math.nan),
        ("rate", "fast"),
        ("rate", -1.0),
        ("limit", -math.inf),
        ("widths", 64),
        ("widths", "64x64"),
        ("widths", [0, 64]),
        ("widths", [64, 1.5]),
        ("words", "ab"),
        ("folder", 3),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_allowed(name, value):
    with pytest.raises(ConfigError, match=f"{name} is .*; it must be "):
        check(FIELDS[name], coerce(FIELDS[name], value))


def test_a_whole_number_too_large_for_a_real_one_is_refused():
    with pytest.raises(ConfigError, match="must be finite"):
        coerce(FIELDS["rate"], 10**400)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flag", True),
        ("name", "b"),
        ("count", 123_456_789_012_345_678_901),
        ("count_or_none", None),
        ("rate", 3e-4),
        ("rate", 0.1234567890123),
        ("limit", math.inf),
        ("widths", (64, 128)),
        ("words", ("size=42", "frames=3")),
        ("folder", Path("runs/x")),
    ],
)
def test_a_value_survives_text_and_json(name, value):
    field = FIELDS[name]
    assert parse(field, show(value)) == value
    assert coerce(field, json.loads(json.dumps(to_json(value)))) == value


@pytest.mark.parametrize(
    ("name", "word"),
    [("flag", "yes"), ("count", "1.5"), ("count", "x"), ("count", "none"), ("widths", "64x1.5"),
     ("rate", "fast")],
)  # fmt: skip
def test_a_word_of_another_type_is_refused(name, word):
    with pytest.raises(ValueError):
        parse(FIELDS[name], word)


def test_whole_numbers_are_exact_and_whole():
    assert whole("5e5") == 500_000 and whole("9007199254740993") == 9_007_199_254_740_993
    for word in ("1.5", "5e-1", "inf", "nan", "one"):
        with pytest.raises((ValueError, OverflowError)):
            whole(word)


def test_values_of_no_stated_type_are_guessed():
    words = {"42": 42, "1e3": 1000, "1.0": 1.0, "True": True, "false": False, "hard": "hard"}
    for word, value in words.items():
        assert guess(word) == value and type(guess(word)) is type(value)


@pytest.mark.parametrize("written", [5e5, np.float32(5e5), 500_000])
def test_5e5_is_whole_in_python(written):
    config = configs.make(preset="none", total_timesteps=written)
    assert config.total_timesteps == 500_000 and type(config.total_timesteps) is int
    assert TrainConfig(total_timesteps=written).total_timesteps == 500_000
    assert configs.from_json({"total_timesteps": float(written)}) == config


@pytest.mark.parametrize("name", ["hidden", "num_updates", "hyper"])
def test_a_config_whose_field_shadows_another_is_refused(name, monkeypatch):
    own = dataclasses.make_dataclass("Config", [(name, int, option(1, "its own"))], frozen=True)
    monkeypatch.setitem(ALGORITHMS, "mine", SimpleNamespace(Config=own))
    with pytest.raises(ConfigError, match=f"'mine' has a field '{name}'.*another name"):
        configs.make(preset="none", algorithm="mine")


def test_a_config_whose_field_is_a_flag_of_the_command_is_refused():
    own = {"gamma": dataclasses.fields(RunOptions)[0]}
    with pytest.raises(ConfigError, match="'ppo' has a field 'gamma', which is a flag"):
        flags.parse([], configs.make(preset="none"), more=own, kept={}, program="x", doc="x")
