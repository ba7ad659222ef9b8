"""The benchmarks of optional suites, without the suites: rows, tables and the calls of Brax."""

import sys
import types

import numpy as np
import pytest

from benchmarks import control, suite_returns
from ppo_jax import config as configs


def test_methods_differ_only_in_the_options_of_their_table():
    flat = {
        method: configs.to_flat(control.config_of("ReacherEasy", method, 8_192))
        for method in control.OPTIONS
    }
    plain, modern, reppo = (flat[method] for method in control.OPTIONS)
    assert {k for k in plain if plain[k] != modern[k]} == {*control.MODERN}
    own = {"gamma", "normalize_reward"}
    assert all(reppo[k] == plain[k] for k in control.COMMON.keys() - own)


def test_steps_are_whole_rollouts():
    assert control.whole(1_000_000) == 244 * 64 * 64 and control.whole(4_095) == 0
    with pytest.raises(SystemExit, match="a rollout has 4096"):
        control.main(control.Options(steps=4_000))
    with pytest.raises(SystemExit, match="CartpoleBalance"):
        control.main(control.Options(tasks=("CartpoleBalanc",)))


def test_only_missing_seeds_are_trained(tmp_path, monkeypatch, capsys):
    calls = []

    def train(task, method, steps, seeds):
        calls.append((task, method, [*seeds]))
        return np.array([float(100 * s) for s in seeds])

    monkeypatch.setattr(control, "FILE", tmp_path / "control.csv")
    monkeypatch.setattr(control, "ours", train)
    monkeypatch.setattr(control, "one_device_per_core", lambda: None)
    words = {"tasks": ("ReacherEasy",), "methods": ("reppo",), "steps": 8_192}
    control.main(control.Options(seeds=2, **words))
    control.main(control.Options(seeds=3, **words))
    assert calls == [("ReacherEasy", "reppo", [0, 1]), ("ReacherEasy", "reppo", [2])]
    assert "| ReacherEasy | 8,192 |  |  | 100 (0, 100, 200) |  |" in capsys.readouterr().out


def test_a_cell_has_an_interval_from_five_seeds_on():
    assert control.cell(np.arange(4.0)) == "2 (0, 1, 2, 3)"
    assert control.cell(np.full(5, 7.0)) == "7 [7, 7]" and control.cell(np.array([])) == ""


def test_the_evaluation_of_brax_after_training_counts(monkeypatch):
    """Each seed reports an evaluation before training, which is not a result."""
    given = []

    def train(**options):
        given.append(options)
        for value in (1.0, 50.0 + options["seed"]):
            options["progress_fn"](0, {"eval/episode_reward": value})

    networks = types.SimpleNamespace(make_ppo_networks=lambda **_: None)
    modules = {
        "brax.training.agents.ppo": types.SimpleNamespace(
            networks=networks, train=types.SimpleNamespace(train=train)
        ),
        "mujoco_playground": types.SimpleNamespace(
            dm_control_suite=types.SimpleNamespace(load=lambda task, **_: task),
            wrapper=types.SimpleNamespace(wrap_for_brax_training=lambda env, **kwargs: kwargs),
        ),
        "benchmarks.throughput.contestants.brax": types.SimpleNamespace(complete_jax=lambda: None),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    returns = control.of_brax("ReacherEasy", 1_000_000, [3, 4])
    np.testing.assert_array_equal(returns, [53.0, 54.0])
    (one, other) = given
    assert one["environment"] == "ReacherEasy" and (one["seed"], other["seed"]) == (3, 4)
    assert one["num_timesteps"] == 999_424 and one["max_devices_per_host"] == 1
    assert one["batch_size"] * one["num_minibatches"] == one["num_envs"] == 64
    assert one["wrap_env_fn"](None) == {"full_reset": True}  # new initial states


def test_rows_of_suites_have_intervals_from_five_seeds_on():
    few = suite_returns.row_of("snake", np.array([3.0, 5.0]), (1.25, 2.5), 8.04)
    assert (few["mean"], few["low"], few["high"]) == (4.0, "", "")
    assert (few["env_steps"], few["untrained"], few["largest"]) == (1_998_848, 1.25, 143.0)
    many = suite_returns.row_of("xland_doorkey", np.linspace(0.9, 0.98, 5), (0.01234, 0.5), 8.04)
    assert many["untrained"] == 0.012 and many["largest"] == ""
    assert 0.9 <= many["low"] < many["mean"] == 0.94 < many["high"] <= 0.98
    table = suite_returns.markdown([{k: str(v) for k, v in r.items()} for r in (few, many)])
    assert "| 1.25 | 2.5 | 4.0 | 3.0 to 5.0 | 143 |" in table
    assert f"| 0.94 [{many['low']}, {many['high']}] | 0.9 to 0.98 |  |" in table


def test_the_last_tenth_of_the_updates_counts_by_episodes():
    returns = np.full((1, 2, 20), 100.0)
    returns[0, :, 18:] = [[1.0, np.nan], [2.0, 5.0]]
    episodes = np.ones((1, 2, 20))
    episodes[0, :, 18:] = [[3, 0], [1, 2]]
    found = suite_returns.sampled({"episode_return": returns, "episodes": episodes})
    assert found == pytest.approx((3 * 1.0 + 2.0 + 2 * 5.0) / 6)


def test_unknown_tasks_of_suites_are_refused():
    with pytest.raises(SystemExit, match="doorkey"):
        suite_returns.main(suite_returns.Options(tasks=("dorkey",)))
