"""The host loop: evaluations, thresholds, callbacks between chunks, and runs from Python."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppo_jax
from ppo_jax import config as configs
from ppo_jax.config import ConfigError
from ppo_jax.envs import make
from ppo_jax.experiment import RunOptions, first_state, started_from
from ppo_jax.runs import chunk, failures, loop
from ppo_jax.runs.checkpoint import CheckpointError
from ppo_jax.runs.job import Diverged, Job, RunFailed
from ppo_jax.runs.metrics_log import read_metrics
from ppo_jax.runs.options import KeepOptions, StageOptions
from ppo_jax.runs.outside import Outside
from ppo_jax.runs.record import InMemory, RunRecord
from ppo_jax.runs.restore import load
from ppo_jax.runs.signals import Signals
from ppo_jax.train import build

UPDATES = 12


def count_up(state, frozen, floats):
    """A job whose state is a number, with one metric that depends on it."""
    return state + 1, {"height": state.astype(jnp.float32) + 1}


JOB = Job(
    name="counting",
    init=lambda: jnp.zeros((), jnp.int32),
    shapes=jax.ShapeDtypeStruct((), jnp.int32),
    step=count_up,
    updates=UPDATES,
    unit="sequences",
    units_per_update=10,
    headline="height",
    score=("height", "judged"),
    evaluate=lambda state, update: {"judged": 100.0 * float(state), "games": 3},
)


def recorded(path, **options):
    path.mkdir(exist_ok=True)
    kept = KeepOptions(**{"checkpoint_seconds": 1e9} | options)
    return RunRecord(path, kept, identity={}, about={"seed": 0}, config={}, quiet=True)


def rows(path):
    return list(read_metrics(path / "metrics.jsonl"))


@pytest.fixture
def one_by_one(monkeypatch):
    monkeypatch.setattr(chunk, "CHUNK_SECONDS", 0.0)


def test_a_job_is_run_logged_saved_and_summarised(tmp_path):
    result = loop.run(JOB, recorded(tmp_path), signals=Signals())
    assert int(result.state) == UPDATES and result.exit_code == 0 and result.path == tmp_path
    assert [row["height"] for row in rows(tmp_path)] == list(range(1, UPDATES + 1))
    assert [row["sequences"] for row in rows(tmp_path)] == list(range(10, 130, 10))
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved == result.summary
    assert saved["sequences"] == 120 and saved["updates"] == UPDATES
    assert (saved["status"], saved["judged"]) == ("finished", 1200.0)


@pytest.mark.parametrize("every", [1, 5, 12, 50])
def test_an_evaluation_falls_on_its_update(tmp_path, every):
    loop.run(JOB, recorded(tmp_path, eval_every=every), signals=Signals())
    judged = {r["update"]: r["judged"] for r in rows(tmp_path) if "judged" in r}
    assert judged == {u: 100.0 * u for u in range(every, UPDATES + 1, every)}
    assert all(type(r.get("games", 0)) is int for r in rows(tmp_path))


def test_the_texts_of_an_evaluation_are_no_metrics():
    found = {"eval_accuracy": 0.5, "eval_loss": float("inf"), "eval_data": "2 examples"}
    assert loop.flattened(found) == {"eval_accuracy": 0.5, "eval_loss": None}


HEIGHTS = {2: 5.0, 4: 9.0, 6: 9.0, 8: 7.0, 10: 1.0, 12: 2.0}


@pytest.mark.parametrize(("minimise", "best"), [(False, 4), (True, 10)])
@pytest.mark.parametrize("final", ["best", "last"])
def test_the_best_state_is_saved_at_once_and_is_the_result(tmp_path, minimise, best, final):
    """Both states before and after it are worse, and no checkpoint is due in between."""
    job = JOB._replace(
        evaluate=lambda state, update: {"judged": HEIGHTS[update]},
        result=lambda state, path: {"counted": int(state)},
        keeps_best=True,
        minimise=minimise,
    )
    kept = StageOptions(checkpoint_seconds=1e9, eval_every=2, final_model=final)
    record = RunRecord(tmp_path, kept, identity={}, about={}, config={}, quiet=True)
    result = loop.run(job, record, signals=Signals())
    assert int(result.state) == UPDATES
    counted = best if final == "best" else UPDATES
    assert (result.summary["counted"], result.summary["model_update"]) == (counted, counted)
    assert record.checkpoints.best() == best
    again = dataclasses.replace(kept, resume=tmp_path)
    record = RunRecord(tmp_path, again, identity={}, about={}, config={}, quiet=True)
    assert loop.run(job, record, signals=Signals()).summary["counted"] == counted


def test_the_last_state_of_a_run_competes_for_the_best(tmp_path):
    job = JOB._replace(evaluate=lambda s, update: {"judged": float(update)}, keeps_best=True)
    loop.run(job, recorded(tmp_path, eval_every=5), signals=Signals())
    assert [r["update"] for r in rows(tmp_path) if "judged" in r] == [5, 10, 12]


def test_a_score_to_be_minimised_ends_a_run_from_above(tmp_path):
    job = JOB._replace(evaluate=lambda s, update: {"judged": 10.0 - update}, minimise=True)
    result = loop.run(job, recorded(tmp_path, eval_every=2, stop_at=4.0), signals=Signals())
    assert result.summary["updates"] == 6 and result.summary["ended_early"] == "reached 4"


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"evaluate": None}, {"eval_every": 2}, "counting has no evaluation"),
        ({"score": (None, None)}, {"stop_at": 2.0}, "has no score to compare with it$"),
        ({"score": (None, "judged")}, {"stop_at": 2.0}, "also give --eval-every"),
    ],
)
def test_options_that_a_job_cannot_follow_are_refused(changes, options, says):
    with pytest.raises(ConfigError, match=says):
        loop.check(JOB._replace(**changes), KeepOptions(**options))


def test_evaluations_are_logged_however_seldom_rows_are(tmp_path):
    loop.run(JOB, recorded(tmp_path, eval_every=5, log_every=4), signals=Signals())
    assert [r["update"] for r in rows(tmp_path)] == [4, 5, 8, 10, 12]


def test_the_best_checkpoint_goes_by_evaluations_where_there_are_any(tmp_path, one_by_one):
    falling = JOB._replace(evaluate=lambda state, update: {"judged": -float(state)})
    for name, options, best in (("rows", {}, 12), ("evaluated", {"eval_every": 1}, 1)):
        record = recorded(tmp_path / name, checkpoint_seconds=0.0, **options)
        loop.run(falling, record, signals=Signals())
        assert record.checkpoints.best() == best


@pytest.mark.parametrize(("options", "last"), [({"stop_at": 7.0}, 7), ({"eval_every": 3}, 6)])
def test_a_threshold_ends_a_run_early(tmp_path, one_by_one, options, last):
    options = {"stop_at": 600.0} | options
    result = loop.run(JOB, recorded(tmp_path, **options), signals=Signals())
    assert int(result.state) == last and result.exit_code == 0
    assert result.summary["ended_early"] == f"reached {options['stop_at']:g}"
    assert result.summary["status"] == "finished" and result.summary["judged"] == 100.0 * last
    assert recorded(tmp_path).checkpoints.steps() == [last]


def test_a_callback_sees_rows_and_state_and_may_end_the_run(tmp_path, one_by_one):
    seen = []

    def enough(progress, state):
        seen.append((progress.update, progress.step, [r["update"] for r in progress.rows]))
        assert int(state) == progress.update and progress.updates == UPDATES
        assert progress.path == tmp_path
        return progress.update == 4

    result = loop.run(JOB, recorded(tmp_path), signals=Signals(), callbacks=[enough])
    assert seen == [(u, 10 * u, [u]) for u in range(1, 5)]
    assert int(result.state) == 4 and result.summary["ended_early"] == "ended by enough"
    assert recorded(tmp_path).checkpoints.steps() == [4]


def test_a_callback_that_fails_loses_nothing(tmp_path, one_by_one):
    def broken(progress, state):
        if progress.update == 3:
            raise ZeroDivisionError

    record = recorded(tmp_path)
    with pytest.raises(ZeroDivisionError):
        loop.run(JOB, record, signals=Signals(), callbacks=[broken])
    assert record.checkpoints.steps() == [3]
    resumed = recorded(tmp_path, resume=tmp_path)
    result = loop.run(JOB, resumed, signals=Signals())
    assert int(result.state) == UPDATES
    assert [row["height"] for row in rows(tmp_path)] == list(range(1, UPDATES + 1))


def test_a_signal_ends_a_run_between_chunks_with_its_number(tmp_path, one_by_one):
    def interrupt(progress, state):
        if progress.update == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with Signals() as signals:
        result = loop.run(JOB, recorded(tmp_path), signals=signals, callbacks=[interrupt])
    assert result.exit_code == 143 and int(result.state) == 2
    assert result.summary["status"] == "stopped by SIGTERM" and "judged" not in result.summary


def test_a_run_in_memory_leaves_arrays(one_by_one):
    record = InMemory()
    result = loop.run(JOB, record, signals=Signals())
    assert int(record.state) == int(result.state) == UPDATES and result.path is None
    assert record.metrics["height"].tolist() == list(range(1, UPDATES + 1))


# --- runs of agents from Python -------------------------------------------------------------


def small(**changes):
    values = {"num_envs": 4, "num_steps": 16, "total_timesteps": 320, "hidden": (8,)}
    return configs.make(preset="none", **values | changes)


def test_run_and_evaluate_from_python(tmp_path, capsys):
    seen = []
    result = ppo_jax.run(
        small(), tmp_path / "a", callbacks=[lambda p, s: seen.append(p.step)], eval_episodes=4,
        eval_every=2,
    )  # fmt: skip
    assert result.path == tmp_path / "a" and result.exit_code == 0
    assert result.summary["env_steps"] == 320 and seen[-1] == 320
    assert int(result.state.update) == 5
    judged = [r["update"] for r in rows(result.path) if r.get("eval_return_mean") is not None]
    assert judged == [2, 4]
    assert "run directory" not in capsys.readouterr().out
    found = ppo_jax.evaluate(result.path, episodes=6)
    again = ppo_jax.evaluate(ppo_jax.load(result.path), episodes=6)
    np.testing.assert_array_equal(found.episode_return, again.episode_return)
    assert found.episode_return.shape == (6,) and np.asarray(found.finished).all()


def test_a_run_in_another_thread_goes_without_signals(tmp_path):
    results = []

    def target():
        results.append(ppo_jax.run(small(), tmp_path / "a", eval_episodes=0))

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert results[0].summary["env_steps"] == 320


def test_what_run_does_not_know_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown option 'eval_evry'; did you mean eval_every"):
        ppo_jax.run(small(), tmp_path / "a", eval_evry=2)
    assert not (tmp_path / "a").exists()


def test_a_run_starts_from_another(tmp_path):
    """Other hyperparameters and another number of environments; the optimiser state is new."""
    first = ppo_jax.run(small(normalize_obs=True), tmp_path / "a", eval_episodes=0)
    config = small(normalize_obs=True, num_envs=2, learning_rate=1e-30, seed=7)
    second = ppo_jax.run(config, tmp_path / "b", init_from=tmp_path / "a", eval_episodes=0)
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    same(second.state.learner.params, first.state.learner.params)
    moments = first.state.rollout.moments.obs
    start = started_from(first.state, first_state(config, build(config)))
    same(start.rollout.moments.obs, moments)
    assert float(start.learner.step) == 0
    kept = json.loads((tmp_path / "b" / "config.json").read_text())["run"]
    assert kept["init_from"] == str(tmp_path / "a")


def test_another_network_is_no_start(tmp_path):
    ppo_jax.run(small(), tmp_path / "a", eval_episodes=0)
    with pytest.raises(
        ConfigError, match=r"parameters of that run do not fit .*float32\[8\] there"
    ):
        ppo_jax.run(small(hidden=(16,)), tmp_path / "b", init_from=tmp_path / "a")
    assert not (tmp_path / "b").exists()


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_other_again(tmp_path):
    ppo_jax.run(small(), tmp_path / "a", eval_episodes=0)
    options = {"init_from": tmp_path / "a", "eval_episodes": 0}
    whole = ppo_jax.run(small(seed=3), tmp_path / "b", **options)
    ppo_jax.run(small(seed=3), tmp_path / "c", **options)
    for manifest in (tmp_path / "c" / "checkpoints").glob("*.json"):
        manifest.unlink()
    (tmp_path / "c" / "summary.json").unlink()
    kept = json.loads((tmp_path / "c" / "config.json").read_text())["run"]
    options = RunOptions(resume=tmp_path / "c", init_from=Path(kept["init_from"]), eval_episodes=0)
    again = ppo_jax.experiment.train(small(seed=3), options)
    jax.tree.map(
        np.testing.assert_array_equal, again.state.learner.params, whole.state.learner.params
    )
    assert int(load(tmp_path / "c")[2].update) == 5


def test_a_run_that_was_started_from_another_goes_on_without_it(tmp_path, monkeypatch):
    """The other run may have been deleted, and its path may be relative to another folder."""
    monkeypatch.chdir(tmp_path)
    ppo_jax.run(small(), "a", eval_episodes=0)
    ppo_jax.run(small(), "b", init_from="a", eval_episodes=0)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    longer = small(total_timesteps=640)
    assert ppo_jax.run(longer, resume=tmp_path / "b").summary["env_steps"] == 640
    with pytest.raises(
        ConfigError, match=r"--init-from is .*elsewhere, but the resumed run .* from .*a;"
    ):
        ppo_jax.run(longer, resume="b", init_from="elsewhere")


def test_a_resume_from_python_has_the_options_of_the_run(tmp_path):
    ppo_jax.run(small(), tmp_path / "a", eval_episodes=4, log_every=2)
    result = ppo_jax.run(small(total_timesteps=640), resume=tmp_path / "a")
    assert result.summary["eval_episodes"] == 4
    assert [r["update"] for r in rows(tmp_path / "a")] == [2, 4, 6, 8, 10]
    kept = json.loads((tmp_path / "a" / "config.json").read_text())["run"]
    assert kept["log_every"] == 2 and kept["eval_episodes"] == 4


def test_a_run_that_reached_its_threshold_stays_as_it_is(tmp_path, one_by_one):
    first = loop.run(JOB, recorded(tmp_path, stop_at=4.0), signals=Signals())
    again = loop.run(JOB, recorded(tmp_path, stop_at=4.0, resume=tmp_path), signals=Signals())
    assert int(first.state) == int(again.state) == 4
    assert again.summary["ended_early"] == "reached 4"
    higher = recorded(tmp_path, stop_at=6.0, resume=tmp_path)
    assert int(loop.run(JOB, higher, signals=Signals()).state) == 6


@pytest.mark.parametrize("every", [3, None])
def test_an_evaluation_that_is_not_finite_is_no_traceback(tmp_path, every):
    job = JOB._replace(evaluate=lambda state, update: {"judged": float("nan")})
    record = recorded(tmp_path, eval_every=every)
    if every is None:
        assert loop.run(job, record, signals=Signals()).summary["judged"] is None
        return
    with pytest.raises(Diverged, match="judged is not finite at update 3"):
        loop.run(job, record, signals=Signals())


def test_an_evaluation_that_fails_loses_nothing(tmp_path):
    def broken(state, update):
        raise ZeroDivisionError

    record = recorded(tmp_path, eval_every=3)
    with pytest.raises(ZeroDivisionError):
        loop.run(JOB._replace(evaluate=broken), record, signals=Signals())
    assert record.checkpoints.steps() == [3]
    assert [row["update"] for row in rows(tmp_path)] == [1, 2, 3]
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


def test_a_figure_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ppo_jax.runs.curves.plot_run", full)
    with pytest.warns(UserWarning, match="learning_curve.png not written"):
        assert loop.run(JOB, recorded(tmp_path), signals=Signals()).exit_code == 0


@pytest.mark.parametrize("error", [ValueError("mathtext"), OverflowError("ticks"), MemoryError()])
def test_whatever_a_figure_fails_with_is_a_warning(tmp_path, monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr("ppo_jax.runs.curves.plot_run", failing)
    with pytest.warns(UserWarning, match="learning_curve.png not written"):
        assert loop.run(JOB, recorded(tmp_path), signals=Signals()).exit_code == 0


@pytest.mark.parametrize("name", ["learning_curve.png", "summary.json"])
def test_a_file_that_is_a_directory_is_a_warning(tmp_path, name):
    """A job name that contains signs of mathematical formulas is drawn unchanged."""
    (tmp_path / name / "inside").mkdir(parents=True)
    job = JOB._replace(name="$x on a:_$b^")
    with pytest.warns(UserWarning, match=f"{name} not written"):
        assert loop.run(job, recorded(tmp_path), signals=Signals()).exit_code == 0


def test_a_name_with_signs_of_formulas_is_drawn(tmp_path):
    with warnings.catch_warnings(action="error"):
        loop.run(JOB._replace(name="$x on a:_$b^"), recorded(tmp_path), signals=Signals())
    assert (tmp_path / "learning_curve.png").stat().st_size > 1000


def test_a_result_that_cannot_be_written_says_what_is_saved(tmp_path):
    def full(state, path):
        raise OSError(28, "No space left on device")

    with pytest.raises(RunFailed, match="result could not be written to .*No space.*: the state"):
        loop.run(JOB._replace(result=full), recorded(tmp_path), signals=Signals())
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


def test_evaluations_during_training_do_not_depend_on_the_length_of_the_run(tmp_path):
    horizon = {"anneal_timesteps": 1e6}
    options = {"eval_every": 5, "eval_episodes": 4}
    ppo_jax.run(small(**horizon), tmp_path / "a", **options)
    whole = ppo_jax.run(small(total_timesteps=640, **horizon), tmp_path / "b", **options)
    ppo_jax.run(small(total_timesteps=640, **horizon), resume=tmp_path / "a")
    judged = [[r.get("eval_return_mean") for r in rows(tmp_path / name)] for name in "ab"]
    assert judged[0] == judged[1] and whole.exit_code == 0


def test_what_cannot_be_written_down_is_refused_before_an_earlier_run_is_deleted(tmp_path):
    ppo_jax.run(small(), tmp_path / "a", eval_episodes=0)
    with pytest.raises(ConfigError, match="which no file can hold"):
        ppo_jax.run(small(learning_rate=lambda p: 1e-3 * (1 - p)), tmp_path / "a", overwrite=True)
    assert int(load(tmp_path / "a")[2].update) == 5


def test_a_callback_must_be_a_function(tmp_path):
    with pytest.raises(ConfigError, match=r"callback json is a module; it must be a function"):
        ppo_jax.run(small(), tmp_path / "a", callback=("json",))
    assert not (tmp_path / "a").exists()


def test_a_resume_with_an_object_imports_nothing_that_the_folder_names(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("open('imported', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    ppo_jax.run(small(), "a", eval_episodes=0)
    path = tmp_path / "a" / "config.json"
    content = json.loads(path.read_text())
    content["config"]["algorithm"] = "evil"
    path.write_text(json.dumps(content))
    with pytest.raises((ConfigError, CheckpointError)):
        ppo_jax.run(small(), resume="a", env=make("CartPole-v1"))
    with pytest.raises(ConfigError, match="names code to import, evil"):
        ppo_jax.run(small(), "b", init_from="a")
    assert not (tmp_path / "imported").exists()


def test_an_environment_that_is_named_again_has_its_arguments(tmp_path):
    config = small(env="DeepSea-bsuite", env_args=("size=5",))
    ppo_jax.run(config, tmp_path / "a", eval_episodes=0)
    found = ppo_jax.evaluate(tmp_path / "a", 3, env="DeepSea-bsuite")
    assert found.episode_length.tolist() == [5, 5, 5]


def test_the_only_vector_environment_is_not_evaluated_in_during_training(tmp_path):
    gymnasium = pytest.importorskip("gymnasium")
    vector = gymnasium.make_vec("CartPole-v1", num_envs=4)
    with pytest.raises(ConfigError, match="--eval-every requires environments separate from those"):
        ppo_jax.run(small(env=vector), tmp_path / "a", env=vector, eval_every=2)
    assert not (tmp_path / "a").exists()


def test_a_signal_that_comes_while_the_summary_is_written_counts(tmp_path, monkeypatch):
    """The training is complete, and the summary says so; the exit code is that of the signal."""
    written = RunRecord.finish

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGHUP)
        return written(*arguments)

    monkeypatch.setattr(RunRecord, "finish", interrupted)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with Signals() as signals:
            result = loop.run(JOB, recorded(tmp_path), signals=signals)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.exit_code == signals.exit_code == 128 + signal.SIGHUP
    assert result.summary["status"] == "finished"


def test_nohup_is_respected(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_function_in_python_that_fails_is_one_line(tmp_path, one_by_one, capfd):
    """The chunk has consumed its input state; the last checkpoint is still valid."""

    def look(state):
        if state == 5:
            raise ValueError("the scene\nis gone")
        return np.float32(state)

    def step(state, frozen, floats):
        seen = jax.pure_callback(look, jax.ShapeDtypeStruct((), jnp.float32), state)
        return state + 1, {"height": seen}

    job, record = JOB._replace(step=step), recorded(tmp_path, checkpoint_seconds=0.0)
    record.resume = "again"
    with pytest.raises(RunFailed) as failed:
        loop.run(job, record, signals=Signals())
    text = str(failed.value)
    assert "a Python function called by the program raised ValueError: the scene is gone" in text
    assert "(test_loop.py, line " in text
    assert text.endswith(
        f"saved in {tmp_path}: the state after 50 sequences. To continue: again --resume {tmp_path}"
    )
    assert "\n" not in text and "Traceback" not in capfd.readouterr().err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["updates"]) == ("failed", 5)
    assert "the scene is gone" in summary["reason"]


@pytest.mark.parametrize("every", [3, None])
def test_an_evaluation_whose_function_in_python_fails_is_one_line(tmp_path, every):
    def evaluate(state, update):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return {"judged": float(jax.pure_callback(lambda x: [][1], shape, state))}

    record, updates = recorded(tmp_path, eval_every=every), every or UPDATES
    with pytest.raises(RunFailed, match=rf"raised IndexError: .*after {updates}0 sequences") as e:
        loop.run(JOB._replace(evaluate=evaluate), record, signals=Signals())
    assert "\n" not in str(e.value) and record.checkpoints.steps() == [updates]


def test_what_a_program_fails_with_is_one_line():
    error = jax.errors.JaxRuntimeError("INTERNAL: no luck\n\nmuch more")
    assert failures.one_line(error) == "the program failed: INTERNAL: no luck"


@pytest.mark.parametrize("ends", ["finished", "diverged", "failed"])
def test_a_summary_counts_what_was_replaced_however_a_run_ends(tmp_path, one_by_one, ends):
    """Also while the run is in progress: a killed process writes no summary at its end."""
    outside = Outside(lambda: None, lambda: {"env_restarts": 2}, lambda since: None, lambda: None)
    summary = lambda: json.loads((tmp_path / "summary.json").read_text())
    seen = []

    def look(progress, state):
        seen.append(summary())
        if ends == "failed":
            raise ZeroDivisionError

    def step(state, frozen, floats):
        height = jnp.where((state == 3) & (ends == "diverged"), jnp.nan, 1.0)
        return state + 1, {"height": height}

    job = JOB._replace(outside=outside, step=step)
    with contextlib.suppress(Diverged, ZeroDivisionError), Signals() as signals:
        loop.run(job, recorded(tmp_path), signals=signals, callbacks=[look])
    assert (seen[0]["status"], seen[0]["env_restarts"]) == ("running", 2)
    assert (summary()["status"], summary()["env_restarts"]) == (ends, 2)
