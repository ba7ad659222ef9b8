"""Trackers: logged rows, names of runs, and runs that continue after a tracker fails."""

import json
import re
import sys
import types

import pytest

from ppo_jax.config import ConfigError, installation
from ppo_jax.runs import metrics_log, trackers

ROWS = [
    {"update": k, "env_step": 10 * k, "episode_return": None if k == 1 else 5.0, "loss": 0.5}
    for k in (1, 2)
]


class Recorder:
    """A module with the interface of wandb and trackio: init returns a run with log and finish."""

    def __init__(self):
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.started.append(options)
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    """name -> Recorder, installed as a module of that name."""

    def install(name):
        recorder = Recorder()
        module = types.SimpleNamespace(init=recorder.init, Settings=lambda **options: options)
        monkeypatch.setitem(sys.modules, name, module)
        return recorder

    return install


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_rows_become_numbers_at_their_step(tmp_path, fake, name):
    recorder = fake(name)
    started = trackers.start([name], tmp_path, {"gamma": 0.9}, 10)
    with metrics_log.MetricsLog(tmp_path / "metrics.jsonl", 0, started) as log:
        log.write(ROWS)
    assert recorder.logged == [
        (10, {"update": 1, "env_step": 10, "loss": 0.5}),
        (20, {"update": 2, "env_step": 20, "episode_return": 5.0, "loss": 0.5}),
    ]
    assert recorder.finished == 1
    (options,) = recorder.started
    assert options["config"] == {"gamma": 0.9} and options["project"] == "ppo_jax"
    assert options["resume"] == "allow"


@pytest.mark.parametrize(("name", "field"), [("wandb", "id"), ("trackio", "name")])
def test_a_resumed_run_goes_on_under_its_name(tmp_path, fake, name, field):
    recorder = fake(name)
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        trackers.start([name], tmp_path / folder, {}, 10)
    first, second, other = (options[field] for options in recorder.started)
    assert first == second != other
    assert first.startswith("a-") and json.loads((tmp_path / "a/trackers.json").read_text()) == {
        name: first
    }


def test_a_tracker_that_breaks_down_is_left_behind(tmp_path, fake):
    recorder = fake("wandb")
    (tracker,) = trackers.start(["wandb"], tmp_path, {}, 10)
    tracker.log(ROWS[0])

    def broken(*_, **__):
        raise ConnectionError("no route")

    recorder.log = broken
    with pytest.warns(UserWarning, match=r"wandb fails \(no route\); continuing without it"):
        tracker.log(ROWS[1])
    tracker.log(ROWS[1])  # without a warning
    tracker.close()
    assert len(recorder.logged) == 1 and recorder.finished == 1


def test_a_tracker_that_does_not_start_is_an_error_with_a_hint(tmp_path, fake):
    first, second = fake("trackio"), fake("wandb")
    sys.modules["wandb"].init = lambda **_: second.no_such_thing
    with pytest.raises(ConfigError, match=r"--wandb: wandb does not start: .*WANDB_MODE=offline"):
        trackers.start(["trackio", "wandb"], tmp_path, {}, 10)
    assert first.finished == 1


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("wandb", "trackio"):
        how = re.escape(installation.command(f"[{name}]"))
        with pytest.raises(ConfigError, match=rf"--{name} needs .*{how}"):
            trackers.require([name])
    trackers.require([])
