"""Results of sweeps: curves, scores, ranking, tables and figures."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy import stats

from ppo_jax import config as configs
from ppo_jax.analysis import style
from ppo_jax.sweep import figures, page, publish, results, store, tables
from ppo_jax.sweep.results import PointResult, binned, filled, penalise, row, settings

RNG = np.random.default_rng(0)


def check_file(content: bytes, format: str) -> None:
    """Check that a file can be read."""
    if format == "svg":
        assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    elif format == "pdf":
        assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    else:
        assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")


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
    for png in drawn.values():
        for format in style.FORMATS:
            check_file(png.with_suffix(f".{format}").read_bytes(), format)
            assert store.FIGURE.fullmatch(f"{png.stem}.{format}")  # it goes with the sweep
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
    titles = [a.get_title("left") for a in figures.learning_curves(found, None).axes]
    assert titles == ["CartPole-v1, 2 seeds", "Acrobot-v1, 2 seeds", "Pendulum-v1, 2 seeds", ""]


def test_configurations_are_called_by_the_values_in_which_they_differ():
    points = [
        {"learning_rate": 5e-4, "clip_eps": 0.1, "gamma": 0.99, "hidden": (64, 64)},
        {"learning_rate": 2e-3, "clip_eps": 0.1, "gamma": 0.99, "hidden": (128,)},
    ]
    first, second = results.short_names(points)
    assert first == "learning_rate=0.0005, hidden=64x64"
    assert second == "learning_rate=0.002, hidden=128"
    close = [{"learning_rate": x} for x in (1.23456e-3, 1.23411e-3)]
    assert results.short_names(close) == ["learning_rate=0.001235", "learning_rate=0.001234"]
    (setting,) = settings([point([1.0, 2.0], learning_rate=1e-3)])
    assert setting.short == "learning_rate=0.001"


@pytest.mark.parametrize(
    ("values", "scales", "expected"),
    [
        ((1e-4, 1e-3, 1e-2), {}, "log"),
        ((0.1, 0.2, 0.3), {}, "linear"),
        ((0.1, 0.2, 0.3), {"gamma": "log"}, "log"),
        ((1e-4, 1e-3, 1e-2), {"gamma": "lin"}, "linear"),
    ],
)
def test_log_spaced_values_have_a_log_axis(values, scales, expected):
    found = settings([point([1.0 + k, 2.0], gamma=g) for k, g in enumerate(values)])
    (axes,) = figures.sensitivity(found, "gamma", scales.get("gamma")).axes
    assert axes.get_xscale() == expected and axes.get_xlabel() == "gamma"


def test_the_command_line_says_which_values_are_log_spaced(monkeypatch):
    words = ["sweep", "--vary", "learning-rate=log:1e-4:1e-2", "--vary=gamma=lin:0.9:0.99:3"]
    sessions = [{"command": [*words, "clip_eps=0.1,0.2"]}, {"command": ["sweep", "--resume", "x"]}]
    monkeypatch.setattr(publish, "read_sessions", lambda path: [*sessions, {}])
    assert publish.scales(None) == {"learning_rate": "log", "gamma": "lin"}


@pytest.mark.parametrize(("seeds", "bands"), [(4, 0), (5, 2)])
def test_figures_show_no_interval_of_few_seeds(seeds, bands):
    scores = RNG.normal(300, 50, seeds)
    found = settings([point(scores, gamma=0.9), point(scores - 100, gamma=0.99)])
    (axes,) = figures.learning_curves(found, None).axes
    assert len(axes.collections) == bands
    thin = [line for line in axes.lines if line.get_label().startswith("_child")]
    assert len(thin) == (0 if bands else 2 * seeds)
    (axes,) = figures.performance_profile(found).axes
    assert len(axes.collections) == bands
    (axes,) = figures.improvement(found).axes
    assert len(axes.lines) == 2 + bool(bands)  # the probability, and one half


def test_figures_name_lines_and_axes():
    found = settings(
        [point(RNG.normal(300, 50, 6), learning_rate=r, gamma=0.99) for r in (5e-4, 2e-3)]
    )
    names = sorted(s.short for s in found)
    assert names == ["learning_rate=0.0005", "learning_rate=0.002"]
    for figure, labels in (
        (figures.learning_curves(found, None), ("environment steps", "episode return in training")),
        (
            figures.performance_profile(found),
            ("threshold of the mean return", "fraction of runs above it"),
        ),
    ):
        (axes,), (legend,) = figure.axes, figure.legends
        assert (axes.get_xlabel(), axes.get_ylabel()) == labels
        assert sorted(t.get_text() for t in legend.get_texts()) == names
    (axes,) = figures.improvement(found).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [found[1].short]


def test_the_table_to_paste_has_values_and_intervals():
    found = [point([480.0, 500], learning_rate=5e-4), point([100.0, 300], learning_rate=2e-3)]
    rows = results.table(found)
    head, sides, best, _ = tables.markdown(rows).splitlines()
    assert head.startswith("| learning_rate | environment | seeds | diverged | mean | IQM | 95 % ")
    assert "configuration" not in head and sides.startswith("| ---: | --- | ---: |")
    assert best.startswith("| 0.0005 | CartPole-v1 | 2 | 0 | 490 | 490 | [480, 500] | ")
    assert best.endswith("| 100% |")
    lines = tables.latex(rows).splitlines()
    assert lines[1].startswith(r"\begin{tabular}{rlrrrrr") and lines[-1] == r"\end{tabular}"
    assert lines[3].startswith(r"learning\_rate & environment & seeds")
    assert r"95 \% interval" in lines[3] and lines[3].endswith(r"\\")
    cells = {line.count(" & ") for line in lines if line.endswith(r"\\")}
    assert cells == {head.count("|") - 2}
    assert "<th>configuration</th>" in tables.as_html(rows)


def test_latex_escapes_what_it_would_read():
    text = tables.latex([{"a_b": r"50% & $x$ #1 {y} \z ~^"}])
    assert r"a\_b \\" in text
    assert r"50\% \& \$x\$ \#1 \{y\} \textbackslash{}z \textasciitilde{}\textasciicircum{}" in text


def test_the_report_is_one_file_and_escapes_what_it_shows(tmp_path):
    (setting,) = settings([point([1.0, 2.0])])
    drawn = figures.draw([setting], None, tmp_path)
    rows = [{"a": "<script>", "b": None, "c": 12345, "d": (64, 64), "e": 0.1 + 0.2}]
    parts = [tables.as_html(rows), page.picture("x", drawn["Learning curves"])]
    text = page.page("t", [*parts, page.copyable("Markdown", tables.markdown(rows))])
    assert "<td><script>" not in text and text.count("<script>") == 1 and "&lt;script&gt;" in text
    assert "12,345" in text and "64x64" in text and "<td>0.3</td>" in text
    assert "<th>b</th>" not in text  # a column without values
    assert "http" not in text and 'src="data:image/png;base64,' in text
    assert text.count("data:application/pdf") == text.count("data:image/svg+xml") == 1
    assert text.count('class="copy"') == 1
    assert tables.markdown(rows).splitlines()[2] == "| <script> | 12,345 | 64x64 | 0.3 |"
