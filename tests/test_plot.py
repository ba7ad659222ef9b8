"""Comparison of runs: what is read, grouping into curves, labels, and positions of points."""

import csv
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ppo_jax import config as configs
from ppo_jax.analysis import curves as grouping
from ppo_jax.analysis import plot, read, style
from ppo_jax.analysis.curves import curves
from ppo_jax.cli.plot import main as plot_command
from ppo_jax.config import ConfigError
from ppo_jax.runs import folder as folders
from ppo_jax.runs.folder import write_config
from ppo_jax.sweep.store import COLUMNS, Spec, Store


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


def make_sweep(folder, rates, seeds=(0, 1, 2), parts=4):
    """A sweep over learning rates: the agent of point p and seed s returns 10 p + s throughout."""
    sizes = {"num_envs": 4, "num_steps": 25, "total_timesteps": 100 * parts}
    points = [configs.make(preset="none", learning_rate=r, **sizes) for r in rates]
    folder.mkdir(parents=True)
    Store(folder, Spec(("learning_rate",), tuple(points), tuple(seeds), 0, parts)).describe({})
    with (folder / "results.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for p in range(len(rates)):
            for s in seeds:
                for k in range(1, parts + 1):
                    table.writerow((p, s, 100 * k, "episodes", 2))
                    table.writerow((p, s, 100 * k, "episode_return", 10 * p + s))
    return folder


def make_stage(folder, kind, values, **options):
    """A stage of a language model with these values of its main metric."""
    unit, metric = {"sft": ("sequences", "loss"), "ppo": ("responses", "objective")}[kind]
    folder.mkdir(parents=True)
    content = {"format": folders.STAGE_FORMAT, "stage": kind, "config": {"seed": 0} | options}
    (folder / "config.json").write_text(json.dumps(content))
    with (folder / "metrics.jsonl").open("w") as file:
        for k, value in enumerate(values, 1):
            row = {"update": k, unit: 8 * k, metric: value, f"{unit}_per_second": 4.0}
            file.write(json.dumps(row) + "\n")
    return folder


def read_all(*folders, metric="episode_return", x="steps"):
    return read.read(folders, metric, x)


def test_runs_that_differ_in_the_seed_alone_are_one_curve(tmp_path):
    low = [make_run(tmp_path / f"a{s}", [(1, 1.0 + s)] * 4, seed=s) for s in range(3)]
    high = make_run(tmp_path / "b", [(1, 9.0)] * 4, learning_rate=0.1)
    best, other = curves(read_all(*low, high))
    assert (best.label, other.label) == ("learning_rate=0.1", "learning_rate=0.0003")
    assert best.values.shape == (1, 4) and other.values.shape == (3, 4)
    np.testing.assert_array_equal(other.middle, np.full(4, 2.0))
    np.testing.assert_array_equal(other.x, [50, 150, 250, 350])


def test_algorithms_are_called_by_their_names(tmp_path):
    ppo = make_run(tmp_path / "a", [(1, 2.0)])
    a2c = make_run(tmp_path / "b", [(1, 1.0)], algorithm="a2c")
    assert [curve.label for curve in curves(read_all(ppo, a2c))] == ["ppo", "a2c"]
    assert [curve.label for curve in curves(read_all(ppo))] == ["ppo"]


def test_configurations_that_differ_in_more_than_a_line_holds_are_called_by_their_folders(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(grouping, "LABEL_WIDTH", 20)
    one = make_run(tmp_path / "one", [(1, 2.0)], learning_rate=0.1, gamma=0.9)
    two = make_run(tmp_path / "two", [(1, 1.0)], learning_rate=0.2, gamma=0.95)
    assert [curve.label for curve in curves(read_all(one, two))] == ["one", "two"]


def test_a_point_is_the_mean_over_its_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "BINS", 2)
    run = make_run(tmp_path / "a", [(1, 10.0), (3, 2.0), (0, None), (2, 7.0)])
    (curve,) = curves(read_all(run))
    np.testing.assert_allclose(curve.values, [[(10 + 3 * 2) / 4, 7.0]])
    np.testing.assert_array_equal(curve.x, [100, 300])


def test_places_without_an_episode_lie_between_their_neighbours(tmp_path):
    run = make_run(tmp_path / "a", [(1, 0.0), (0, None), (0, None), (1, 3.0), (1, 3.0)])
    columns = read_all(run)[0].columns
    edges = np.arange(0, 501, 100.0)
    middle = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose(grouping._binned(columns, edges, middle, 1), [0, 1, 2, 3, 3])
    smooth = grouping._binned(columns, edges, middle, 3)  # windows: 0 | 0 | 3 | 3 3 | 3 3
    np.testing.assert_allclose(smooth, [0, 0, 3, 3, 3])


def test_a_curve_ends_where_its_shortest_run_does(tmp_path):
    runs = [make_run(tmp_path / f"a{n}", [(1, 1.0)] * n, seed=n) for n in (3, 6)]
    (curve,) = curves(read_all(*runs))
    assert curve.values.shape == (2, 3) and curve.x[-1] == 250


def test_positions_are_steps_seconds_or_updates(tmp_path):
    run = make_run(tmp_path / "a", [(1, 1.0)] * 3)
    for x, expected in (("steps", [100, 200, 300]), ("seconds", [2, 4, 6]), ("updates", [1, 2, 3])):
        np.testing.assert_allclose(read_all(run, x=x)[0].columns["x"], expected)


def test_the_agents_of_a_sweep_are_curves_by_configuration(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", (1e-3, 1e-2))
    best, other = curves(read_all(sweep))
    assert (best.label, other.label) == ("learning_rate=0.01", "learning_rate=0.001")
    np.testing.assert_allclose(best.values[:, -1], [10, 11, 12])
    np.testing.assert_allclose(other.middle, np.full(4, 1.0))
    assert read_all(sweep, x="updates")[0].columns["x"].tolist() == [1, 2, 3, 4]


def test_a_sweep_that_is_being_written_shows_what_is_finished(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", (1e-3, 1e-2))
    lines = (sweep / "results.csv").read_text().splitlines(keepends=True)
    (sweep / "results.csv").write_text("".join(lines[:9]) + "0,1,1")
    (curve,) = curves(read_all(sweep))
    assert curve.values.shape == (1, 4)


def test_runs_in_a_folder_are_found_once(tmp_path):
    run = make_run(tmp_path / "zoo" / "CartPole-v1" / "seed0", [(1, 1.0)] * 4)
    make_run(tmp_path / "zoo" / "CartPole-v1" / "seed1", [(1, 2.0)] * 4, seed=1)
    make_run(tmp_path / "zoo" / ".hidden", [(1, 2.0)] * 4, seed=2)
    make_sweep(tmp_path / "zoo" / "sweep", (1e-3,), seeds=(5,))
    model = tmp_path / "zoo" / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gpt2"}')
    found = read_all(tmp_path / "zoo", run)
    assert [r.path.name for r in found] == ["seed0", "seed1", "sweep"]


def test_environments_have_a_panel_each(tmp_path):
    runs = [
        make_run(tmp_path / f"{env}{alg}", [(1, r)] * 4, env=env, algorithm=alg)
        for env, alg, r in (
            ("CartPole-v1", "ppo", 1.0),
            ("CartPole-v1", "a2c", 2.0),
            ("Acrobot-v1", "ppo", 3.0),
        )
    ]
    figure = plot.draw(curves(read_all(*runs)), "steps")
    assert [a.get_title("left") for a in figure.axes] == ["CartPole-v1", "Acrobot-v1"]
    assert [len(a.get_legend_handles_labels()[1]) for a in figure.axes] == [2, 1]
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["a2c", "ppo"]
    colours = [
        {line.get_label(): line.get_color() for line in axes.lines}["ppo"] for axes in figure.axes
    ]
    assert colours[0] == colours[1]


@pytest.mark.parametrize("seeds", [1, 4, 5])
def test_an_interval_needs_five_seeds(tmp_path, seeds):
    runs = [make_run(tmp_path / f"a{s}", [(1, s), (1, 2 * s)], seed=s) for s in range(seeds)]
    figure = plot.draw(curves(read_all(*runs)), "steps")
    (axes,) = figure.axes
    bands, thin = len(axes.collections), len(axes.lines) - 1
    assert (bands, thin) == ((1, 0) if seeds >= 5 else (0, seeds))
    name = axes.get_legend_handles_labels()[1]
    assert name == ["ppo" if seeds == 1 else f"ppo ({seeds} seeds)"]
    ends = {1: "return", 4: "return, mean over seeds", 5: "return, mean and 95 % interval"}
    assert axes.get_ylabel() == f"episode {ends[seeds]}"


@pytest.mark.parametrize(
    ("x", "metric", "names"),
    [
        ("steps", "episode_return", ("environment steps", "episode return")),
        ("seconds", "entropy", ("wall-clock time of training (s)", "entropy (nats)")),
        ("updates", "episode_return", ("updates", "episode return")),
    ],
)
def test_axes_are_named_with_their_units(tmp_path, x, metric, names):
    run = make_run(tmp_path / "a", [(1, 1.0)] * 3)
    (axes,) = plot.draw(curves(read_all(run, x=x, metric=metric)), x).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == names
    assert axes.get_title("left") == "CartPole-v1, ppo"


def command(*words) -> int:
    with pytest.raises(SystemExit) as stop:
        plot_command([*map(str, words)])
    return stop.value.code


def test_the_command_writes_three_formats_or_the_one_that_is_named(tmp_path, capsys):
    runs = [make_run(tmp_path / f"a{s}", [(1, 1.0)] * 20, seed=s) for s in range(5)]
    sweep = make_sweep(tmp_path / "sweep", (1e-3,))
    assert command(*runs, sweep, "--out", tmp_path / "all") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "8 runs as 2 curves. Bands are 95 % bootstrap intervals" in printed
    assert "With fewer than 5 seeds, thin lines are single runs" in printed
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF-")
    assert ElementTree.parse(tmp_path / "all.svg").getroot().tag.endswith("svg")
    assert command(*runs, "--out", tmp_path / "one.svg", "--metric", "entropy") == 0
    assert [p.name for p in tmp_path.glob("one*")] == ["one.svg"]
    assert command(*runs, "--out", tmp_path / "two.svg", "--metric", "entropy") == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "entrpy"], "has no metric 'entrpy'; did you mean entropy?"),
        (["--out", "x.jpg"], "its name must end in .png, .pdf, .svg, or have no ending"),
        (["--out", "/nowhere/x.png"], "there is no directory /nowhere"),
        (["--out", "."], "which is a directory"),
        (["--smooth", "2"], "--smooth is 2.0; it must be >= 0 and <= 0.5"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys, words, message):
    run = make_run(tmp_path / "a", [(1, 1.0)])
    assert command(run, *words) == 2
    assert message in capsys.readouterr().err


def test_stages_of_language_models_have_panels_and_metrics_of_their_own(tmp_path):
    make_stage(tmp_path / "demo" / "sft", "sft", [3.0, 2.0])
    make_stage(tmp_path / "demo" / "ppo", "ppo", [0.1, 0.3])
    (tmp_path / "demo" / "config.json").write_text(json.dumps({"stage": "demo", "config": {}}))
    for folder in (tmp_path / "demo", tmp_path):
        figure = plot.draw(curves(read_all(folder, metric=None)), "steps")
        found = [(a.get_title(loc="left") or a.get_title(), a.get_xlabel()) for a in figure.axes]
        assert [x for _, x in found] == ["sequences", "responses"]
        assert [a.get_ylabel() for a in figure.axes] == ["loss", "objective"]
    (run,) = read_all(tmp_path / "demo" / "ppo", metric=None, x="seconds")
    np.testing.assert_allclose(run.columns["x"], [2.0, 4.0])
    seeds = [
        make_stage(tmp_path / f"s{s}", "ppo", [1.0 * s], seed=s, algorithm="rloo") for s in (1, 2)
    ]
    (curve,) = curves(read_all(*seeds, metric=None))
    assert (curve.label, curve.values.shape) == ("rloo", (2, 1))
    with pytest.raises(ConfigError, match="has no metric 'episode_return'"):
        read_all(seeds[0])


def test_folders_that_are_no_runs_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, mark, content in (
        ("model", "config.json", '{"model_type": "gpt2"}'),
        ("stage", "config.json", json.dumps({"stage": "demo", "config": {}})),
        ("broken", "config.json", "{"),
        ("sweep", "sweep.json", '{"sweep": {}}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).write_text(content)
    for path, message in (
        (tmp_path / "nothing", "nothing does not exist; name a run directory, a sweep, or"),
        (tmp_path / "file", "file is a file; name a run directory, a sweep, or"),
        (tmp_path / "empty", "there is no config.json or sweep.json in it"),
        (tmp_path / "model", "is not a run directory: its config.json is that of something else"),
        (tmp_path / "stage", "is a stage of a language model that has no curves: 'demo'"),
        (tmp_path / "broken", "config.json is damaged"),
        (tmp_path / "sweep", r"sweep.json is damaged: KeyError\('configs'\)"),
        (make_run(tmp_path / "new", []), "has no rows in metrics.jsonl yet"),
        (make_run(tmp_path / "short", [(0, None)]), "episode_return never has a value"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_all(path)


def test_what_a_sweep_does_not_have_is_refused(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", (1e-3,))
    with pytest.raises(ConfigError, match="no wall-clock time of their own; use --x steps or"):
        read_all(sweep, x="seconds")
    with pytest.raises(ConfigError, match="has no metric 'episode_retrn'; did you mean"):
        read_all(sweep, metric="episode_retrn")
    (sweep / "results.csv").write_text(
        "configuration,seed,env_step,metric,value\n0,0,x,episodes,1\n"
    )
    with pytest.raises(ConfigError, match="results.csv is damaged"):
        read_all(sweep)
    (sweep / "results.csv").unlink()
    with pytest.raises(ConfigError, match="has no results.csv yet"):
        read_all(sweep)


def test_more_curves_than_colours_share_a_name(tmp_path):
    rates = tuple(1e-3 * (1 + k) for k in range(style.NAMED + 3))
    found = curves(read_all(make_sweep(tmp_path / "sweep", rates, seeds=(0,))))
    figure = plot.draw(found, "steps")
    (legend,) = figure.legends
    names = [t.get_text() for t in legend.get_texts()]
    assert len(names) == style.NAMED + 1 and names[-1] == "3 others"
    assert names[0] == "learning_rate=0.011"
