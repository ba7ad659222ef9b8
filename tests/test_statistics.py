"""Statistics of runs: agreement with rliable 1.2.0 and with closed forms."""

import numpy as np
import pytest
from scipy import stats

from ppo_jax.analysis import statistics
from reference import golden_file

GOLDEN = np.load(golden_file("rliable.npz"))
X, Y = ([*GOLDEN[name].T] for name in "xy")  # one stratum per task


def assert_interval(found, expected):
    """Both are bootstraps of thousands of resamples with independent random numbers."""
    width = expected[1] - expected[0]
    np.testing.assert_allclose(found, expected, atol=0.03 * width + 1e-12)


def test_the_interquartile_mean_is_that_of_rliable():
    np.testing.assert_allclose(statistics.interquartile_mean(*X), GOLDEN["iqm_x"][0])
    np.testing.assert_allclose(statistics.interquartile_mean(*Y), GOLDEN["iqm_y"][0])


def test_its_interval_is_stratified_like_that_of_rliable():
    found = statistics.interval(X, resamples=20_000)
    assert_interval(found, GOLDEN["iqm_ci_x"].ravel())
    pooled = statistics.interval([np.concatenate(X)], resamples=20_000)
    assert np.ptp(pooled) > 1.05 * np.ptp(found)  # not the same as without strata


def test_the_mean_and_its_interval_are_those_of_rliable():
    np.testing.assert_allclose(statistics.mean(*X), GOLDEN["mean_x"][0])
    found = statistics.interval(X, statistics.mean, resamples=20_000)
    assert_interval(found, GOLDEN["mean_ci_x"].ravel())


def test_the_performance_profile_is_that_of_rliable():
    marks = GOLDEN["taus"]
    np.testing.assert_allclose(statistics.performance_profile(X, marks), GOLDEN["profile"])
    above = [statistics.above(x, marks) for x in X]
    found = statistics.interval(above, statistics.mean, resamples=5000)
    np.testing.assert_allclose(found, GOLDEN["profile_ci"], atol=1.01 / sum(map(len, X)))  # one run


def test_the_probability_of_improvement_is_that_of_rliable_and_scipy():
    found = statistics.probability_of_improvement(*X, *Y)
    np.testing.assert_allclose(found, GOLDEN["poi"][0])
    u = [stats.mannwhitneyu(x, y).statistic / x.size / y.size for x, y in zip(X, Y, strict=True)]
    np.testing.assert_allclose(found, np.mean(u))
    interval = statistics.interval([*X, *Y], statistics.probability_of_improvement, resamples=5000)
    assert_interval(interval, GOLDEN["poi_ci"].ravel())


def test_curves_are_resampled_by_seed():
    """Points of a curve share their resamples: a constant shift moves both ends equally."""
    curve = np.random.default_rng(0).normal(size=(20, 5))
    curve[:, 1] = curve[:, 0] + 3
    low, high = statistics.interval([curve])
    np.testing.assert_allclose(low[1] - low[0], 3)
    np.testing.assert_allclose(high[1] - high[0], 3)


def test_the_interval_of_a_difference_is_around_it():
    x = np.random.default_rng(1).normal(size=40)
    assert statistics.difference(x, x) == 0
    low, high = statistics.interval([x + 10, x], statistics.difference)
    assert 8 < low < 10 < high < 12


def test_a_single_seed_has_no_interval():
    assert np.isnan(statistics.interval([np.array([3.0])])).all()


@pytest.mark.parametrize(("seeds", "share"), [(3, 0.75), (5, 0.89), (10, 0.93), (30, 0.94)])
def test_an_interval_covers_as_often_as_the_report_says(seeds, share):
    """Coverage for the interquartile mean of normal scores, at a nominal 95 %."""
    rng, covered = np.random.default_rng(2), 0
    for k in range(400):
        low, high = statistics.interval([rng.normal(size=seeds)], resamples=400, seed=k)
        covered += low < 0 < high
    assert covered / 400 == pytest.approx(share, abs=0.04)
