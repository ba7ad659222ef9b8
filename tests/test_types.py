"""Options know what they may be set to, and say so."""

import math

import pytest

from ppo_jax.types import Bounds, did_you_mean


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
