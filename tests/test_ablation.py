"""The ablation of PPO's options: what is trained, resumed and summarised."""

import csv

import numpy as np
import pytest

from benchmarks import ablation
from benchmarks.ablation import ALL, DEFAULT, TASKS, VARIANTS, Options


def test_statistics_by_hand():
    returns = {
        ("acrobot", DEFAULT): np.array([-90.0, -80.0, -70.0, -60.0]),
        ("acrobot", "muon"): np.array([-75.0, -65.0, -55.0, -45.0]),
        ("pendulum", DEFAULT): np.array([-200.0, -150.0]),
        ("pendulum", "muon"): np.array([-250.0, -300.0]),
        ("breakout", "muon"): np.array([10.0, 11.0]),  # without its default
    }
    rows = {(r["task"], r["variant"]): r for r in ablation.summaries(returns)}
    assert [*rows] == [
        ("acrobot", DEFAULT), ("acrobot", "muon"), ("pendulum", DEFAULT), ("pendulum", "muon"),
        (ALL, "muon"),
    ]  # fmt: skip
    acrobot = rows["acrobot", "muon"]
    # The middle half of four returns is the two in the middle.
    assert (acrobot["iqm"], acrobot["difference"]) == (-60.0, 15.0)
    # 13 of 16 pairs: −75 beats two, −65 three, −55 and −45 all four.
    assert acrobot["probability"] == pytest.approx(13 / 16, abs=1e-3)
    assert acrobot["difference_low"] < 15 < acrobot["difference_high"]
    both = rows[ALL, "muon"]
    assert both["probability"] == pytest.approx((13 / 16 + 0) / 2, abs=1e-3)
    assert (both["tasks"], both["seeds"], both["iqm"]) == (2, 2, "")
    assert rows["acrobot", DEFAULT]["probability"] == ""


def test_every_variant_fits_a_task_and_says_where_it_does_not():
    for variant in VARIANTS:
        fits = [
            t
            for t in ("acrobot", "pendulum", "breakout")
            if ablation.config_of(TASKS[t], variant, 100_000)
        ]
        assert fits == {"rpo": ["pendulum"], "impala": ["breakout"]}.get(
            variant, ["acrobot", "pendulum", "breakout"]
        )
    config = ablation.config_of(TASKS["acrobot"], "hl_gauss", 100_000)
    assert (config.value_low, config.value_high) == (-200.0, 0.0)


@pytest.fixture
def fake(monkeypatch):
    """The seeds of each call of the training, whose returns are 10 and more."""
    calls = []

    def trained(config, seeds):
        calls.append([*seeds])
        return np.array(seeds) + 10.0 + 5.0 * (config.hyper.optimizer == "muon")

    monkeypatch.setattr(ablation, "trained", trained)
    monkeypatch.setattr(ablation, "one_device_per_core", lambda: None)
    return calls


def test_an_interrupted_command_trains_what_is_missing(fake, tmp_path, capsys):
    options = Options(("pendulum",), ("muon",), seeds=3, piece=2, out=tmp_path)
    ablation.main(options)
    assert fake == [[0, 1], [2], [0, 1], [2]]
    ablation.main(options)
    assert len(fake) == 4
    file = tmp_path / "ablation_seeds.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")  # the last seed of muon was not saved
    ablation.main(options)
    assert fake[4:] == [[2]]
    ablation.main(Options(("pendulum",), ("muon",), seeds=4, piece=2, out=tmp_path))
    assert fake[5:] == [[3], [3]]
    with (tmp_path / "ablation.csv").open() as table:
        rows = {r["variant"]: r for r in csv.DictReader(table)}
    assert rows["muon"]["seeds"] == "4" and float(rows["muon"]["difference"]) == 5.0
    capsys.readouterr()
    ablation.main(Options(out=tmp_path, table=True))
    assert "| `muon` | 16.5 [" in capsys.readouterr().out


def test_results_of_other_options_or_lengths_are_not_mixed(fake, tmp_path, monkeypatch):
    options = Options(("pendulum",), ("muon",), seeds=2, out=tmp_path)
    ablation.main(options)
    monkeypatch.setitem(VARIANTS, "muon", {"optimizer": "muon", "learning_rate": 0.01})
    ablation.main(options)
    ablation.main(Options(("pendulum",), (), seeds=2, steps=50_000, out=tmp_path))
    assert fake == [[0, 1]] * 4
    found = ablation.returns_of(ablation.read(tmp_path / "ablation_seeds.csv"), None)
    assert {key: len(x) for key, x in found.items()} == {
        ("pendulum", DEFAULT): 2, ("pendulum", "muon"): 2,
    }  # fmt: skip


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="did you mean muon"):
        ablation.main(Options(variants=("muonn",), out=tmp_path))
    with pytest.raises(SystemExit, match="seeds is 0"):
        ablation.main(Options(seeds=0, out=tmp_path))


@pytest.mark.slow
def test_two_seeds_of_a_variant_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "EPISODES", 2)
    ablation.main(Options(("pendulum",), ("rpo",), seeds=2, steps=2048, out=tmp_path))
    rows = ablation.read(tmp_path / "ablation_seeds.csv")
    assert [(r["variant"], r["seed"]) for r in rows] == [
        (DEFAULT, "0"), (DEFAULT, "1"), ("rpo", "0"), ("rpo", "1"),
    ]  # fmt: skip
    assert len({r["return"] for r in rows}) == 4
