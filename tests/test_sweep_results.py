"""Results of sweeps: curves, scores, ranking, tables and figures."""

import math

import numpy as np
import pytest
from scipy import stats

from ppo_jax import config as configs
from ppo_jax.sweep import figures, page, results
from ppo_jax.sweep.results import PointResult, binned, filled, penalise, row, settings

RNG = np.random.default_rng(0)


def point(scores, env="CartPole-v1", curve=None, diverged=None, **values):
    """A configuration with given scores; its curve rises to them in ten steps of 100."""
    scores = np.asarray(scores, float)
    curve = scores[:, None] * np.linspace(0.1, 1, 10) if curve is None else np.asarray(curve)
    config = configs.make(preset="none", env=env, total_timesteps=1000, num_envs=4, num_steps=25)
    return PointResult(
        values,
        config,
        tuple(range(len(scores))),
        np.arange(1, curve.shape[1] + 1) * 100,
        {"episode_return": curve},
        scores,
        np.zeros(len(scores)),
        np.zeros(len(scores), bool) if diverged is None else np.array(diverged),
        np.zeros(len(scores), int),
    )


def test_parts_of_a_run_are_means_over_their_episodes():
    metrics = {
        "episodes": np.array([[1, 3, 0, 0, 2, 2]]),
        "episode_return": np.array([[10.0, 20.0, np.nan, np.nan, 1.0, 3.0]]),
        "loss": np.array([[1.0, 2.0, 3.0, 5.0, 7.0, 9.0]]),
        "lost_cuts": np.array([[1, 0, 0, 2, 0, 0]]),
    }
    parts = binned(metrics, 3)
    np.testing.assert_allclose(parts["episodes"], [[4, 0, 4]])
    np.testing.assert_allclose(parts["episode_return"], [[17.5, np.nan, 2.0]])
    np.testing.assert_allclose(parts["loss"], [[1.5, 4, 8]])
    np.testing.assert_allclose(parts["lost_cuts"], [[1, 2, 0]])
    assert binned(metrics, 100)["loss"].shape == (1, 6)  # at most one bin per update


def test_a_gap_repeats_what_was_before():
    nan = np.nan
    curve = np.array([[nan, 1, nan, 3], [nan, nan, nan, nan], [5, nan, nan, 6.0]])
    np.testing.assert_array_equal(filled(curve), [[1, 1, 1, 3], [nan] * 4, [5, 5, 5, 6]])


def test_what_is_not_finite_has_diverged_unless_it_may_be():
    fine = {"loss": np.ones((2, 3)), "episode_return": np.full((2, 3), np.nan)}
    assert not results.diverged(fine).any()
    bad = {**fine, "loss": np.array([[1, 1, 1], [1, np.inf, 1.0]])}
    assert results.diverged(bad).tolist() == [False, True]


def test_without_evaluation_the_end_of_training_counts():
    metrics = {"episodes": np.ones((1, 20)), "episode_return": np.arange(20.0)[None]}
    mean, spread = results.scores(metrics, np.zeros((1, 0)))
    assert mean == 18.5 and np.isnan(spread)
    mean, spread = results.scores(metrics, np.array([[1.0, 3.0]]))
    assert (mean, spread) == (2, 1)


def test_a_diverged_agent_counts_with_the_worst_of_its_environment():
    """If all other agents are perfect, the worst return is from the beginning of training."""
    found = penalise(
        [
            point([500, 400], diverged=[True, False], curve=[[20.0, 500], [22, 500]]),
            point([300, 350], curve=[[25.0, 500], [30, 500]]),
            point([-80.0, np.nan], env="Acrobot-v1", curve=[[-500.0, -80], [-450, -100]]),
        ]
    )
    assert found[0].score.tolist() == [20, 400]
    assert found[1].score.tolist() == [300, 350]
    assert found[2].score.tolist() == [-80, -500]
    (alike,) = penalise(
        [point([9.0, 8], diverged=[True, False], curve=[[9.0], [8]])],
        [point([3.0], curve=[[1.0]])],
    )
    assert alike.score.tolist() == [1, 8]


def test_points_are_ranked_by_score_and_among_equals_by_area():
    slow, fast = np.full((3, 10), 100.0), np.full((3, 10), 200.0)
    order = settings(
        [
            point([500] * 3, curve=slow, gamma=0.9),
            point([400] * 3, gamma=0.95),
            point([500] * 3, curve=fast, gamma=0.99),
        ]
    )
    assert [s.name for s in order] == ["gamma=0.99", "gamma=0.9", "gamma=0.95"]
    assert order[0].strata[0].tolist() == [500] * 3  # one environment: not scaled


def test_over_environments_scores_are_shares_of_their_range():
    found = [
        point([100, 300], env="CartPole-v1", gamma=0.9),
        point([-500, -100], env="Acrobot-v1", gamma=0.9),
        point([500, 300], env="CartPole-v1", gamma=0.99),
        point([-100, -90], env="Acrobot-v1", gamma=0.99),
        point([500, 500], env="CartPole-v1", gamma=0.8),
    ]
    for r in found:
        r.point["env"] = r.env
    best, other = settings(found)  # gamma=0.8 was not tried in all environments
    assert (best.name, other.name) == ("gamma=0.99", "gamma=0.9")
    np.testing.assert_allclose(best.strata[0], [1, 0.5])
    np.testing.assert_allclose(best.strata[1], [400 / 410, 1])


def test_the_table_has_what_people_paste():
    scores = RNG.normal(450, 60, 40)
    line = row(point(scores))
    assert line["mean"] == pytest.approx(scores.mean(), rel=1e-4)
    assert line["iqm"] == pytest.approx(stats.trim_mean(scores, 0.25), rel=1e-4)
    assert line["median"] == pytest.approx(np.median(scores), rel=1e-4)
    assert line["area"] == pytest.approx(0.55 * scores.mean(), rel=1e-4)
    assert line["ci95_low"] < line["iqm"] < line["ci95_high"]
    assert (line["seeds"], line["diverged"], line["threshold"]) == (40, 0, 475)


def test_steps_to_the_threshold_count_those_that_never_get_there():
    curve = np.array([[1, 5, 9, 9.0], [9, 9, 9, 9], [1, 1, 1, 1]])
    result = point([9, 9, 1], curve=curve)
    assert result.steps_to(9).tolist() == [300, 100, math.inf]
    line = row(result, threshold=9)
    assert (line["steps_to_threshold"], line["share_reached"]) == (300, 0.6667)
    line = row(point([9, 1, 1], curve=curve[[1, 2, 2]]), threshold=9)
    assert (line["steps_to_threshold"], line["share_reached"]) == (None, 0.3333)


def test_what_was_never_played_never_got_there():
    nan = np.nan
    result = point([-80.0, -80], env="Acrobot-v1", curve=[[nan, nan, -90], [nan, nan, nan]])
    assert result.steps_to(-100).tolist() == [300, math.inf]
    assert result.area[0] == -90 and np.isnan(result.area[1])
    assert row(result)["area"] is None


def test_environments_without_a_mark_have_none():
    line = row(point([1.0, 2.0], env="Catch-bsuite"))
    assert line["threshold"] is line["steps_to_threshold"] is line["share_reached"] is None
    assert point([1.0], env="gymnax:CartPole-v1").threshold() == 475


def test_every_figure_is_drawn(tmp_path):
    found = settings(
        [
            point(RNG.normal(10 * i, 5, 8), gamma=g, activation=a)
            for i, (g, a) in enumerate((g, a) for g in (0.9, 0.95, 0.99) for a in ("tanh", "relu"))
        ]
    )
    drawn = figures.draw(found, None, tmp_path / "figures")
    assert [*drawn] == [
        "Learning curves",
        "Performance profile",
        "Probability of improvement",
        "Sensitivity to gamma",
        "Sensitivity to activation",
    ]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in drawn.values())
    assert [*figures.draw(found[:1], None, tmp_path / "one")] == [
        "Learning curves",
        "Performance profile",
    ]


def test_the_figures_show_the_numbers():
    high, low = point(np.full(6, 400.0), gamma=0.9), point(np.full(6, 100.0), gamma=0.99)
    found = settings([low, high])
    (axes,) = figures.learning_curves(found, None).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(lines["gamma=0.9"], np.linspace(40, 400, 10))
    (axes,) = figures.improvement(found).axes
    assert axes.lines[1].get_xdata() == [1.0]
    (axes,) = figures.sensitivity(found, "gamma").axes
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), [400, 100])
    (axes,) = figures.performance_profile(found).axes
    np.testing.assert_allclose(axes.lines[1].get_ydata()[[0, -1]], [1, 0])


def test_categories_stand_in_the_order_in_which_they_were_given():
    found = settings(
        [point([s, s], hidden=h) for s, h in ((300, (32,)), (100, (64,)), (500, (128,)))]
    )
    assert [s.point["hidden"] for s in found] == [(128,), (32,), (64,)]
    (axes,) = figures.sensitivity(found, "hidden").axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["32", "64", "128"]
    found = settings([point([s, s], target_kl=k) for s, k in ((1, 0.02), (2, None), (3, 0.01))])
    (axes,) = figures.sensitivity(found, "target_kl").axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.02", "none", "0.01"]


def test_three_environments_have_three_panels():
    found = settings(
        [
            point([1.0, 2], env=env, curve=[[1.0, 2], [2, 3]])._replace(point={"env": env})
            for env in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1")
        ]
    )
    titles = [a.get_title() for a in figures.learning_curves(found, None).axes]
    assert titles == ["CartPole-v1, 2 seeds", "Acrobot-v1, 2 seeds", "Pendulum-v1, 2 seeds", ""]


def test_long_names_become_numbers():
    values = {"learning_rate": 1e-3, "clip_eps": 0.1, "gamma": 0.99, "gae_lambda": 0.95}
    (setting,) = settings([point([1.0, 2.0], **values)])
    assert setting.short == "point 0" and "gae_lambda=0.95" in setting.name


def test_the_report_is_one_file_and_escapes_what_it_shows(tmp_path):
    (setting,) = settings([point([1.0, 2.0])])
    drawn = figures.draw([setting], None, tmp_path)
    rows = [{"a": "<script>", "b": None, "c": 12345, "d": (64, 64), "e": 0.1 + 0.2}]
    text = page.page("t", [page.table(rows), page.picture("x", drawn["Learning curves"])])
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "12,345" in text and "64x64" in text and "<td>0.3</td>" in text
    assert "<th>b</th>" not in text  # a column without values
    assert "http" not in text and 'src="data:image/png;base64,' in text
    assert page.markdown(rows).splitlines()[2] == "| <script> | 12,345 | 64x64 | 0.3 |"
