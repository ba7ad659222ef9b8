"""benchmarks/soak.py: its parts detect faults, and a short soak test passes."""

import csv
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.soak import __main__ as soak
from benchmarks.soak import damage, folders, memory, sessions
from benchmarks.soak.outcome import Tally, digest
from ppo_jax.config import ConfigError

ROOT = Path(__file__).parents[1]


def test_digests_are_of_numbers():
    tree = {"a": jnp.arange(3.0), "b": [1, None, "x"], "key": jax.random.key(1)}
    same = {"b": [1, None, "x"], "key": jax.random.key(1), "a": np.arange(3, dtype=np.float32)}
    assert digest(tree) == digest(same)
    for other in (
        tree | {"a": jnp.arange(3)}, tree | {"b": [1, 0, "x"]}, tree | {"b": [1.0, None, "x"]},
        tree | {"a": jnp.array([0.0, 1.0, np.nextafter(np.float32(2), 3)])},
        tree | {"key": jax.random.key(2)},
    ):  # fmt: skip
        assert digest(other) != digest(tree)


def test_every_damage_is_one(tmp_path):
    rng, path, seen = random.Random(0), tmp_path / "file", set()
    for _ in range(100):
        path.write_bytes(bytes(range(40)))
        seen.add(damage.damage(path, rng).split()[0])
        assert not path.exists() or path.read_bytes() != bytes(range(40))
    assert seen == {"bit", "byte", "cut", "emptied", "deleted"}


def reading(read):
    return folders.Kind("x", lambda path: None, {"read": read})


def refusing(path):
    raise ConfigError("no")


def warning(path):
    import warnings

    warnings.warn("damaged", stacklevel=1)
    return 2


def raising(path):
    raise KeyError("x")


def hanging(path):
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "outcome"),
    [(lambda path: 1, "survived"), (lambda path: 2, "wrong"), (refusing, "refused"),
     (warning, "refused"), (raising, "traceback"), (hanging, "traceback")],
)  # fmt: skip
def test_outcomes(tmp_path, monkeypatch, read, outcome):
    monkeypatch.setattr(damage, "SECONDS", 1)
    found, seen = damage.outcome_of(reading(read), tmp_path, {"read": digest(1)})
    assert found == outcome and bool(seen) == (outcome != "survived")


def test_silence_on_one_way_of_reading_is_not_excused_by_a_word_on_another(tmp_path):
    kind = folders.Kind("x", lambda path: None, {"a": refusing, "b": lambda path: 2})
    assert damage.outcome_of(kind, tmp_path, {"a": "", "b": digest(1)})[0] == "wrong"


@pytest.mark.parametrize(
    ("code", "output", "outcome"),
    [(0, "", ""), (-9, "", ""), (2, "error: x", "refused"), (1, "error: x", "refused"),
     (1, "", "traceback"), (0, "Traceback (most", "traceback"), (-11, "", "traceback"),
     (124, "", "traceback")],
)  # fmt: skip
def test_ends_of_processes(code, output, outcome):
    assert sessions.Ended(code, output).outcome == outcome


def test_differences_of_runs_are_found():
    whole = {"state": "a", "config": "b", "status": "finished", "rows": {1: {"x": 1}, 2: {"x": 2}}}
    assert not sessions.difference(whole, whole)
    for other in (
        whole | {"state": "c"}, whole | {"rows": {1: {"x": 1}}}, whole | {"status": "running"},
        whole | {"rows": {1: {"x": 1}, 2: {"x": 3}}},
    ):  # fmt: skip
        assert sessions.difference(other, whole)


def test_growth_is_that_of_the_second_half():
    steps = np.arange(1, 101) * 1e6
    rising = np.where(steps < 5e7, steps / 1e6, 50.0)
    assert abs(memory.growth_mb(np.stack([steps, rising], 1), 10**8)[0]) < 1e-6
    growth, half = memory.growth_mb(np.stack([steps, steps / 1e6], 1), 10**8)
    assert growth == pytest.approx(100) and half < 1e-6


def test_a_process_kills_itself_before_an_operation(tmp_path):
    """The third change of the folder fails; changes elsewhere are not counted."""
    code = (
        "import os, pathlib; from benchmarks.soak.victim import kill_at\n"
        f"folder = pathlib.Path({str(tmp_path / 'run')!r}); folder.mkdir()\n"
        "kill_at(3, str(folder))\n"
        f"pathlib.Path({str(tmp_path / 'other')!r}).write_text('x')\n"
        "(folder / 'a').write_text('x'); (folder / 'a').rename(folder / 'b')\n"
        "(folder / 'c').write_text('x'); print('alive')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == -signal.SIGKILL and "killed at: open c" in found.stderr
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["b"]


def test_a_table_with_a_wrong_number_fails(tmp_path, monkeypatch, capsys):
    good, bad = Tally("a"), Tally("b")
    good.count("survived")
    bad.count("wrong", "other numbers")
    for found, code in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr(soak, "parts_of", lambda *_, found=found: found)
        assert soak.main(soak.Options(out=str(tmp_path / "x.csv"))) == code
    assert "b: wrong: other numbers" in capsys.readouterr().out
    with (tmp_path / "x.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["silently wrong"] for row in rows] == ["0", "1"]


@pytest.mark.slow
def test_a_small_soak_passes(tmp_path):
    words = ["--kills", "3", "--minutes", "1", "--damages", "24", "--fills", "2"]
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *words, "--steps", "400000",
         "--out", tmp_path / "x.csv"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    with (tmp_path / "x.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert sum(int(row["tries"]) for row in rows) >= 3 + 24 + 2 + 1
    assert all(row["silently wrong"] == row["traceback"] == "0" for row in rows)
