"""Logs after crashes, JSON without NaN, and figures from incomplete data."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ppo_jax.evaluate import warn_unfinished
from ppo_jax.runs import curves, metrics_log, provenance
from ppo_jax.runs.job import Job


def row(update, episode_return=1.0):
    return {
        "update": update,
        "env_step": update * 10,
        "episodes": 2,
        "episode_return": episode_return,
    }


def test_rows_are_numbers_or_null():
    metrics = {"loss": np.array([0.5, np.nan], np.float32), "episodes": np.array([3, 0])}
    rows = metrics_log.rows_of(metrics, first_update=4, steps_per_update=100, rate=123.456)
    assert rows[0] == {
        "update": 4,
        "env_step": 400,
        "loss": 0.5,
        "episodes": 3,
        "steps_per_second": 123.5,
    }
    assert rows[1]["loss"] is None and rows[1]["env_step"] == 500


def test_a_log_goes_on_where_it_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with metrics_log.MetricsLog(path, 0) as log:
        log.write([row(1), row(2), row(3)])
    with path.open("a") as file:
        file.write('12\n{"update": 4, "env_')  # cut off by a crash
    with path.open("ab") as file:
        file.write(b"\xff\xfe")
    with metrics_log.MetricsLog(path, 2) as log:
        log.write([row(3, 9.0)])
    assert [r["update"] for r in metrics_log.read_metrics(path)] == [1, 2, 3]
    assert list(metrics_log.read_metrics(path))[-1]["episode_return"] == 9.0


def test_lines_are_on_disk_after_each_write(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with metrics_log.MetricsLog(path, 0) as log:
        log.write([row(1)])
        assert json.loads(path.read_text()) == row(1)


def test_a_missing_log_is_empty(tmp_path):
    assert list(metrics_log.read_metrics(tmp_path / "nothing")) == []


def test_the_figure_is_drawn_with_and_without_episodes(tmp_path):
    some = [row(i) for i in range(1, 200)]
    some[99]["eval_return_mean"] = 3.0
    job = Job("title", dict, None, lambda *_: None, 1, "env_steps", 1, "episode_return")
    job = job._replace(curves=("episode_return",), score=("episode_return", "eval_return_mean"))
    for name, rows in {"some": some, "none": [row(1, None)]}.items():
        path = tmp_path / name
        path.mkdir()
        (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        curves.plot_run(path, job)
        assert (path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    curves.plot_run(path, job._replace(curves=()))


def test_a_moving_average_counts_every_episode_alike(tmp_path):
    drawn = []
    axes = SimpleNamespace(
        plot=lambda x, y, *_, **named: drawn.append((named["label"], [*x], [*y])),
        legend=lambda **_: None,
    )
    step, value = np.arange(100.0), np.array([1.0, np.nan] * 50)
    curves._draw(axes, step, value, np.where(np.isnan(value), 0.0, 2.0))
    assert drawn[0][1] == [*step[::2]] and set(drawn[1][2]) == {1.0}
    drawn.clear()
    curves._draw(axes, step, np.arange(100.0), np.array([1.0, 3.0] * 50))
    assert drawn[1][0] == "mean of 2 updates" and drawn[1][2][:2] == [0.75, 1.25]


def test_versions_and_device_are_known():
    assert provenance.versions().keys() >= {"python", "jax", "gymnax", "ppo_jax"}
    assert provenance.device()


def test_partial_returns_are_announced():
    with pytest.warns(UserWarning, match="2 of 3 episodes did not end"):
        warn_unfinished(np.array([True, False, False]))
