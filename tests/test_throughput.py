"""The referee: who takes part, what is written down, and that nobody can hang it."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.throughput import results
from benchmarks.throughput.__main__ import Options, check
from benchmarks.throughput.configurations import CONFIGURATIONS, Configuration
from benchmarks.throughput.quality import WINDOW, reached_at
from benchmarks.throughput.race import Contestant, Settings, race

TINY = Configuration("tiny", 4, 8, hidden=(8,))
SETTINGS = Settings(peers=sys.executable, rounds=2, seconds=0.01, patience=120.0)


def test_a_configuration_survives_the_way_to_the_worker():
    for configuration in CONFIGURATIONS.values():
        assert Configuration.from_json(configuration.to_json()) == configuration


@pytest.fixture(scope="module")
def field():
    """Ours on a tiny problem, and PureJaxRL where it is not installed."""
    return race(TINY, ("ours", "purejaxrl"), SETTINGS, say=lambda line: None)


def test_a_race_counts_steps_and_seconds(field):
    ours, missing = field
    assert ours.why == "" and len(ours.rounds) == 2
    for answer in ours.rounds:
        assert answer["env_steps"] == answer["updates"] * 32 and answer["seconds"] > 0
        assert answer["peak_bytes"] > 2**25
    ready = ours.ready
    assert 0 < ready["compile_seconds"] < ready["first_update_seconds"]
    assert missing.why and missing.rounds == []


def test_rows_hold_medians_and_paired_ratios(field, tmp_path):
    ours, missing = field
    fast, slow = (Contestant.__new__(Contestant) for _ in range(2))
    for contestant, name, rates in ((fast, "ours", (100, 300)), (slow, "rejax", (50, 100))):
        vars(contestant).update(vars(ours) | {"name": name})
        contestant.rounds = [{"env_steps": r, "seconds": 1.0, "peak_bytes": 2**20} for r in rates]
    rows = results.rows_of([fast, slow, missing], "9.9.9")
    assert [r["steps_per_second"] for r in rows] == [200, 75, ""]
    assert [r["speedup"] for r in rows] == [1.0, 2.5, ""]  # of 2 and of 3
    assert rows[2]["why"] == missing.why

    results.keep_race(tmp_path, [r | {"configuration": "other"} for r in rows])
    results.keep_race(tmp_path, rows)
    results.keep_race(tmp_path, rows[:2])  # all three of before go
    kept = [*csv.DictReader((tmp_path / results.RACE).open())]
    assert [r["configuration"] for r in kept] == ["other"] * 3 + ["tiny"] * 2
    assert [r["implementation"] for r in kept[:3]] == ["ppo_jax", "PureJaxRL", "Rejax"]
    table = results.race_markdown(tmp_path)
    assert "| other | 0.2 k | - | 0.075 k (2.50x) |" in table
    assert "| tiny | 200 |  | 2.5x |" in results.race_summary(tmp_path)
    results.plot_race(tmp_path)
    assert (tmp_path / "throughput.png").stat().st_size > 10_000


def test_one_that_does_not_answer_is_given_up(monkeypatch):
    """PureJaxRL's sixteen agents wait for ever on some machines."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: start(sleeper, **options))
    settings = Settings(peers=sys.executable, patience=0.5)
    contestant = Contestant("rejax", TINY, settings)
    assert "no answer" in contestant.why
    assert contestant.process.poll() is not None
    contestant.round()
    assert contestant.rounds == []


def test_one_that_dies_says_so(monkeypatch):
    start = subprocess.Popen
    short = [sys.executable, "-c", ""]
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: start(short, **options))
    assert Contestant("rejax", TINY, SETTINGS).why == "died without a word"


def test_what_libraries_print_does_not_reach_the_answers():
    code = """
import os
from benchmarks.throughput.worker import private_stdout
answers = private_stdout()
print("a library's print", flush=True)
os.write(1, b"and its C code's")
print("answer", file=answers)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "answer\n"
    assert "a library's print" in result.stderr and "its C code's" in result.stderr


def test_the_worker_answers_in_lines_of_json():
    words = [sys.executable, "-m", "benchmarks.throughput.worker", "ours", TINY.to_json()]
    asked = '{"seconds": 0.01}\n'
    result = subprocess.run(words, input=asked, capture_output=True, text=True, timeout=180)
    ready, answer = map(json.loads, result.stdout.splitlines())
    assert ready["ready"] and ready["versions"]["jax"] and answer["updates"] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"configurations": ("cartpole-4x12",)},
        {"contestants": ("rejaxx",)},
        {"parts": ("rase",)},
        {"tasks": ("cartpol",)},
    ],
)
def test_unknown_names_are_refused_with_the_nearest(wrong):
    with pytest.raises(SystemExit, match="did you mean"):
        check(Options(**wrong))


def test_a_folder_without_purejaxrl_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"no ppo\.py"):
        check(Options(purejaxrl=tmp_path))


def test_a_mark_is_reached_by_the_mean_over_the_last_updates():
    episodes = np.ones(40)
    returns = np.r_[np.zeros(20), np.full(20, 10.0)]
    assert reached_at(returns, episodes, 10.0) == 20 + WINDOW
    assert reached_at(returns, episodes, 5.0) == 20 + WINDOW // 2
    assert reached_at(returns, episodes, 11.0) is None
    assert reached_at(np.full(40, np.nan), np.zeros(40), -1.0) is None
    # A long episode counts once, however many updates saw it run.
    assert reached_at(np.r_[np.full(39, np.nan), 10.0], np.r_[np.zeros(39), 1.0], 10.0) == 40
