"""Comparison of runs: grouping into curves, labels, and positions of points."""

import json

import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax.analysis import plot
from ppo_jax.cli.plot import main as plot_command
from ppo_jax.config import ConfigError
from ppo_jax.runs.folder import write_config


def make_run(folder, rows, **options):
    """A run folder with these rows (episodes, episode_return), one per 100 steps."""
    folder.mkdir(parents=True)
    write_config(configs.make(preset="none", **options), {}, folder)
    with (folder / "metrics.jsonl").open("w") as file:
        for k, (episodes, episode_return) in enumerate(rows, 1):
            row = {"update": k, "env_step": 100 * k, "episodes": episodes}
            row |= {"episode_return": episode_return, "entropy": 0.5, "steps_per_second": 50.0}
            file.write(json.dumps(row) + "\n")
    return folder


def read(*folders, metric="episode_return", x="env_step"):
    return [plot.read_run(path, metric, x) for path in folders]


def test_runs_that_differ_in_the_seed_alone_are_one_curve(tmp_path):
    low = [make_run(tmp_path / f"a{s}", [(1, 1.0 + s)] * 4, seed=s) for s in range(3)]
    high = make_run(tmp_path / "b", [(1, 9.0)] * 4, learning_rate=0.1)
    best, other = plot.curves(read(*low, high))
    assert (best.label, other.label) == ("learning_rate 0.1", "learning_rate 0.0003")
    assert best.values.shape == (1, 4) and other.values.shape == (3, 4)
    np.testing.assert_array_equal(other.middle, np.full(4, 2.0))
    np.testing.assert_array_equal(other.x, [50, 150, 250, 350])


def test_algorithms_are_called_by_their_names(tmp_path):
    ppo = make_run(tmp_path / "a", [(1, 2.0)])
    a2c = make_run(tmp_path / "b", [(1, 1.0)], algorithm="a2c")
    assert [curve.label for curve in plot.curves(read(ppo, a2c))] == ["ppo", "a2c"]
    assert [curve.label for curve in plot.curves(read(ppo))] == ["ppo"]


def test_a_point_is_the_mean_over_its_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "BINS", 2)
    run = make_run(tmp_path / "a", [(1, 10.0), (3, 2.0), (0, None), (2, 7.0)])
    (curve,) = plot.curves(read(run))
    np.testing.assert_allclose(curve.values, [[(10 + 3 * 2) / 4, 7.0]])
    np.testing.assert_array_equal(curve.x, [100, 300])


def test_places_without_an_episode_lie_between_their_neighbours(tmp_path):
    run = make_run(tmp_path / "a", [(1, 0.0), (0, None), (0, None), (1, 3.0), (1, 3.0)])
    run_columns = read(run)[0].columns
    edges = np.arange(0, 501, 100.0)
    middle = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose(plot._binned(run_columns, edges, middle, 1), [0, 1, 2, 3, 3])
    smooth = plot._binned(run_columns, edges, middle, 3)  # windows: 0 | 0 | 3 | 3 3 | 3 3
    np.testing.assert_allclose(smooth, [0, 0, 3, 3, 3])


def test_a_curve_ends_where_its_shortest_run_does(tmp_path):
    runs = [make_run(tmp_path / f"a{n}", [(1, 1.0)] * n, seed=n) for n in (3, 6)]
    (curve,) = plot.curves(read(*runs))
    assert curve.values.shape == (2, 3) and curve.x[-1] == 250


def test_seconds_are_those_of_training(tmp_path):
    run = make_run(tmp_path / "a", [(1, 1.0)] * 3)
    np.testing.assert_allclose(read(run, x="seconds")[0].columns["x"], [2.0, 4.0, 6.0])


def test_the_figure_has_a_line_and_a_band_per_curve(tmp_path):
    runs = [make_run(tmp_path / f"a{s}", [(1, s), (1, 2 * s)], seed=s) for s in range(4)]
    figure = plot.draw(plot.curves(read(*runs)), "title", "episode_return", "env_step")
    (axes,) = figure.axes
    assert len(axes.lines) == 1 + 4 and len(axes.collections) == 1
    assert axes.get_xlabel() == "environment steps" and axes.get_ylabel() == "episode return"
    assert [plot._short(x) for x in (0, 500, 2500, 1e6, 1.5e9)] == [
        "0",
        "500",
        "2.5k",
        "1M",
        "1.5B",
    ]


def test_the_command_draws_and_tells(tmp_path, capsys):
    runs = [make_run(tmp_path / f"a{s}", [(1, 1.0)] * 20, seed=s) for s in range(3)]
    with pytest.raises(SystemExit) as stop:
        plot_command([*map(str, runs), "--out", str(tmp_path / "x.png"), "--metric", "entropy"])
    assert stop.value.code == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "3 runs as 1 curve. Bands are 95 % intervals" in said and "0.5" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "entrpy"], "has no metric 'entrpy'; did you mean entropy?"),
        (["--out", "x.jpg"], "its name must end in .png, .svg, .pdf"),
        (["--out", "/nowhere/x.png"], "there is no directory /nowhere"),
        (["--smooth", "2"], "--smooth is 2.0; it must be >= 0 and <= 0.5"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys, words, message):
    run = make_run(tmp_path / "a", [(1, 1.0)])
    with pytest.raises(SystemExit) as stop:
        plot_command([str(run), *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_folders_that_are_no_runs_are_refused(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    for path, message in (
        (tmp_path / "nothing", "is not a run directory"),
        (tmp_path / "sweep", "is a sweep, whose report.html has its curves"),
        (make_run(tmp_path / "new", []), "has no rows in metrics.jsonl yet"),
        (make_run(tmp_path / "short", [(0, None)]), "episode_return never has a value"),
    ):
        with pytest.raises(ConfigError, match=message):
            read(path)
