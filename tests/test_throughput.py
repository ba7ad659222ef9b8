"""The throughput benchmark: contestants, result files, and protection against hangs."""

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.throughput import results, tables
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
    """Our contestant on a small problem, and PureJaxRL if it is not installed."""
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


def made_up(field, rates):
    """Contestants with rounds of these rates, each with two thirds of its wall-clock time on a
    CPU."""
    found = []
    for name, mine in rates.items():
        contestant = Contestant.__new__(Contestant)
        ready = field[0].ready | {"options": f"xla_of={name}"}
        vars(contestant).update(vars(field[0]) | {"name": name, "ready": ready})
        contestant.rounds = [
            {"env_steps": r, "seconds": 1.0, "cpu_seconds": 2 / 3, "peak_bytes": 2**20}
            for r in mine
        ]
        found.append(contestant)
    return found


WHERE = results.Where("9.9.9", "abc", load=0.5)


def test_rows_hold_medians_and_paired_ratios(field, tmp_path):
    missing = field[1]
    # Rejax is half as fast in each round of a machine that slows down; SBX won some rounds, and its
    # own median is higher.
    rates = {
        "ours": [300, 300, 200, 100, 100],
        "rejax": [150, 150, 100, 50, 50],
        "sbx": [250, 290, 250, 250, 90],
    }
    racers = [*made_up(field, rates), missing]
    rows = results.rows_of(racers, WHERE)
    assert [r["steps_per_second"] for r in rows] == [200, 100, 250, ""]
    assert [r["steps_per_cpu_second"] for r in rows] == [300, 150, 375, ""]
    assert [r["cpu_seconds_per_million"] for r in rows[:2]] == [3333.333, 6666.667]
    assert [r["speedup"] for r in rows] == [1.0, 2.0, 1.034, ""]
    assert (rows[1]["speedup_low"], rows[1]["speedup_high"]) == (2.0, 2.0)
    assert rows[2]["speedup_low"] < 1 < rows[2]["speedup_high"]
    assert {r["commit"] for r in rows} == {"abc"} and rows[3]["why"] == missing.why

    results.keep_race(tmp_path, racers, WHERE)
    results.keep_race(tmp_path, racers[:3], dataclasses.replace(WHERE, devices="all"))
    kept = [*csv.DictReader((tmp_path / results.RACE).open())]
    assert [r["devices"] for r in kept] == ["one"] * 4 + ["all"] * 3
    results.keep_race(tmp_path, racers[:2], WHERE)  # all four earlier rows are removed
    kept = [*csv.DictReader((tmp_path / results.RACE).open())]
    assert [r["implementation"] for r in kept[:2]] == ["ppo_jax", "Rejax"] and len(kept) == 5
    rounds = [*csv.DictReader((tmp_path / results.ROUNDS).open())]
    assert [float(r["env_steps"]) for r in rounds[5:10]] == rates["rejax"]
    assert [r["cpu_seconds"] for r in rounds[:5]] == ["0.666667"] * 5


def test_a_table_calls_a_tie_a_tie(field, tmp_path):
    rates = {
        "ours": [300, 300, 200, 100, 100],
        "purejaxrl": [150, 150, 100, 50, 50],
        "rejax": [250, 290, 250, 250, 90],
        "sbx": [600, 600, 400, 200, 200],
    }
    results.keep_race(tmp_path, made_up(field, rates), WHERE)
    table = tables.markdown(tmp_path)
    row = next(line for line in table.splitlines() if line.startswith("| tiny"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "0.2 k"
    assert cells[2] == "0.1 k, 2.00x [2.00, 2.00]"
    # 1.03 is the median of the pairs, but Rejax's own median is higher.
    assert cells[3].startswith("0.25 k, tie [") and "x" not in cells[3]
    assert cells[4] == "0.4 k, 0.50x [0.50, 0.50]"
    seconds = f"{field[0].ready['compile_seconds']:.1f}"
    assert cells[5] == f"{seconds} / {seconds}"
    options = next(line for line in table.splitlines() if line.startswith("| compiler's options"))
    assert "| xla_of=ours | xla_of=purejaxrl |" in options and "commit abc" in table
    summary = tables.summary(tmp_path)
    assert f"| tiny | 200 | 2.00x [2.00, 2.00] | {cells[3][8:]} | 0.50x" in summary
    per_cpu = tables.markdown(tmp_path, "cpu_seconds")
    assert "| tiny | 0.3 k | 0.15 k, 2.00x [2.00, 2.00]" in per_cpu
    tables.plot(tmp_path)
    assert (tmp_path / "throughput.png").stat().st_size > 10_000


def test_other_devices_are_not_compared(field, tmp_path):
    racers = made_up(field, {"ours": [300] * 5, "rejax": [100] * 5})
    racers[0].ready["devices"] = 2
    rows = results.keep_race(tmp_path, racers, dataclasses.replace(WHERE, devices="all"))
    assert [r["device_count"] for r in rows] == [2, 1]
    assert rows[1]["speedup"] == rows[1]["cpu_speedup"] == ""
    assert "| tiny, 2 devices | 0.3 k | 0.1 k |" in tables.markdown(tmp_path)


def test_of_a_few_rounds_nothing_is_claimed(field, tmp_path):
    rates = {"ours": [300] * 4, "rejax": [100] * 4}
    results.keep_race(tmp_path, made_up(field, rates), WHERE)
    assert "0.1 k, too few rounds |" in tables.markdown(tmp_path)


def test_a_table_of_two_commits_is_refused(field, tmp_path):
    racers = made_up(field, {"ours": [1] * 5, "rejax": [1] * 5})
    results.keep_race(tmp_path, racers, WHERE)
    later = dataclasses.replace(WHERE, commit="def", devices="all")
    results.keep_race(tmp_path, racers, later)
    with pytest.raises(SystemExit, match="of commit abc and of commit def"):
        tables.markdown(tmp_path)
    results.keep_race(tmp_path, racers, later, fresh=True)
    rows = [*csv.DictReader((tmp_path / results.RACE).open())]
    assert {r["commit"] for r in rows} == {"def"} and len(rows) == 2
    assert len([*csv.DictReader((tmp_path / results.ROUNDS).open())]) == 10


def test_where_nobody_can_take_part_there_is_no_row(field, tmp_path):
    assert results.keep_race(tmp_path, field[1:], WHERE) == []
    assert not (tmp_path / results.RACE).exists()


def test_one_that_does_not_answer_is_given_up(monkeypatch):
    """PureJaxRL with sixteen agents hangs on some machines."""
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
    assert Contestant("rejax", TINY, SETTINGS).why == "the process ended unexpectedly"


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
    # A long episode counts once, however many updates it spans.
    assert reached_at(np.r_[np.full(39, np.nan), 10.0], np.r_[np.zeros(39), 1.0], 10.0) == 40
