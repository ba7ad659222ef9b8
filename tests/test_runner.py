"""Runs with folders: their files, and interrupted, killed and resumed runs."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from damage import add_damaged_checkpoints
from ppo_jax import config as configs
from ppo_jax import experiment
from ppo_jax.config import ConfigError
from ppo_jax.experiment import RunOptions, train
from ppo_jax.runs import checkpoint, chunk, manifest
from ppo_jax.runs.checkpoint import CheckpointError, Checkpoints
from ppo_jax.runs.folder import RunDirectory
from ppo_jax.runs.job import Diverged, RunFailed
from ppo_jax.runs.metrics_log import read_metrics
from ppo_jax.runs.restore import load

SUMMARY = {
    "env", "algorithm", "seed", "env_steps", "eval_return_mean", "eval_return_std",
    "eval_episodes", "compile_seconds", "train_seconds", "env_steps_per_second", "device",
    "versions",
}  # fmt: skip
METRICS = {
    "update", "env_step", "episodes", "episode_return", "episode_length", "loss", "policy_loss",
    "value_loss", "entropy", "approx_kl", "clip_fraction", "explained_variance", "learning_rate",
    "steps_per_second",
}  # fmt: skip


def run(config, options, **more):
    """The exit code of a run."""
    return train(config, options, **more).exit_code


def small(**changes):
    return configs.make(
        preset="none",
        **{"num_envs": 4, "num_steps": 16, "total_timesteps": 640, "hidden": (8,)} | changes,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "a"
    assert run(small(), RunOptions(run_dir=path, eval_episodes=8, tensorboard=True)) == 0
    return path


def rows(path: Path) -> list[dict]:
    """metrics.jsonl without the column that contains a measured time."""
    return [
        {k: v for k, v in r.items() if k != "steps_per_second"}
        for r in read_metrics(path / "metrics.jsonl")
    ]


def final_state(path: Path):
    state = load(path)[2]
    key = jax.random.key_data(state.key)
    return jax.tree.map(np.asarray, state.replace(key=key))


def assert_same_run(a: Path, b: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, final_state(a), final_state(b))
    assert rows(a) == rows(b)


def test_a_run_leaves_what_is_promised(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary.keys() >= SUMMARY
    assert summary["env_steps"] == 640 and summary["eval_episodes"] == 8
    assert 8 <= summary["eval_return_mean"] <= 500
    assert summary["versions"]["jax"] == jax.__version__
    saved = json.loads((finished / "config.json").read_text())
    assert saved["config"]["num_envs"] == 4 and saved["config"]["total_timesteps"] == 640
    assert saved.keys() >= {"config", "run", "versions", "device", "sessions"}
    lines = list(read_metrics(finished / "metrics.jsonl"))
    assert [r["update"] for r in lines] == list(range(1, 11))
    assert [r["env_step"] for r in lines] == [64 * i for i in range(1, 11)]
    assert all(r.keys() >= METRICS for r in lines)
    assert (finished / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert any((finished / "tensorboard").iterdir())
    assert (finished / "checkpoints").is_dir()


def test_no_finished_episode_is_null(tmp_path):
    run(small(env="Pendulum-v1"), RunOptions(run_dir=tmp_path / "p", eval_episodes=0))
    text = (tmp_path / "p" / "metrics.jsonl").read_text()
    first = json.loads(text.splitlines()[0])
    assert first["episodes"] == 0 and first["episode_return"] is None
    assert "NaN" not in text


def test_the_same_seed_gives_the_same_numbers_however_it_is_logged(tmp_path, finished):
    options = RunOptions(run_dir=tmp_path / "b", eval_episodes=0, log_every=3, checkpoint_seconds=0)
    run(small(), options)
    each, found = rows(finished), rows(tmp_path / "b")
    assert [r["update"] for r in found] == [3, 6, 9, 10]
    for before, row in zip([0, 3, 6, 9], found, strict=True):
        part = each[before : row["update"]]
        assert row["env_step"] == part[-1]["env_step"]
        assert row["episodes"] == sum(r["episodes"] for r in part)
        assert row["loss"] == pytest.approx(np.mean([r["loss"] for r in part]))
        total = sum(r["episodes"] * r["episode_return"] for r in part if r["episodes"])
        assert row["episode_return"] == pytest.approx(total / row["episodes"])
    jax.tree.map(np.testing.assert_array_equal, final_state(finished), final_state(tmp_path / "b"))


def test_a_finished_run_goes_on_to_a_larger_total(tmp_path):
    horizon = {"anneal_timesteps": 1280.0}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(small(total_timesteps=1280, **horizon), RunOptions(run_dir=whole, eval_episodes=0))
    run(small(total_timesteps=576, **horizon), RunOptions(run_dir=parts, eval_episodes=0))
    run(small(total_timesteps=1280, **horizon), RunOptions(resume=parts, eval_episodes=0))
    assert_same_run(whole, parts)
    assert json.loads((parts / "summary.json").read_text())["env_steps"] == 1280


@pytest.mark.slow
def test_normalisation_resumes_too(tmp_path):
    options = {
        "normalize_obs": True,
        "normalize_reward": True,
        "env": "Pendulum-v1",
        "anneal_timesteps": 1280.0,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(small(total_timesteps=1280, **options), RunOptions(run_dir=whole, eval_episodes=0))
    run(small(total_timesteps=640, **options), RunOptions(run_dir=parts, eval_episodes=0))
    run(small(total_timesteps=1280, **options), RunOptions(resume=parts, eval_episodes=0))
    assert_same_run(whole, parts)


def test_an_existing_run_is_not_touched(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(
        ConfigError, match=r"already holds a run; continue it with --resume .* --overwrite"
    ):
        run(small(), RunOptions(run_dir=finished))
    after = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    del before[finished / ".lock"], after[finished / ".lock"]
    assert after == before


def test_overwrite_replaces_it(tmp_path):
    path = tmp_path / "a"
    run(small(), RunOptions(run_dir=path, eval_episodes=0))
    run(
        small(seed=5, total_timesteps=128),
        RunOptions(run_dir=path, eval_episodes=0, overwrite=True),
    )
    assert json.loads((path / "summary.json").read_text())["seed"] == 5
    assert len(rows(path)) == 2


def test_nothing_but_runs_is_ever_deleted(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(ConfigError, match=r"is not a run and not empty \(it contains thesis.txt\)"):
        run(small(), RunOptions(run_dir=tmp_path, overwrite=True))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    path = tmp_path / "run"
    with RunDirectory(path) as directory:
        (path / "config.json").write_text("{}")
        (path / "notes.txt").write_text("lr too high?")
        (path / "tensorboard").symlink_to(tmp_path)
        directory.clear()
        assert not directory.used and (path / "notes.txt").exists()
    assert (tmp_path / "thesis.txt").exists()


def test_a_directory_in_use_is_refused(tmp_path):
    with (
        RunDirectory(tmp_path / "a"),
        pytest.raises(ConfigError, match="in use by another process"),
    ):
        run(small(), RunOptions(run_dir=tmp_path / "a"))


def test_a_directory_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to run directory"):
        run(small(), RunOptions(run_dir=tmp_path / "file" / "run"))


@pytest.mark.slow
def test_a_crash_between_commit_and_manifest_is_no_obstacle(tmp_path, monkeypatch):
    """Orbax's step is complete but has no manifest: it must be made and saved again."""
    path, whole = tmp_path / "a", tmp_path / "whole"
    run(small(), RunOptions(run_dir=whole, eval_episodes=0))
    written = checkpoint.write_json

    def killed(target, content):
        if target.name == "4.json":
            raise KeyboardInterrupt
        written(target, content)

    monkeypatch.setattr(checkpoint, "write_json", killed)
    options = {"eval_episodes": 0, "checkpoint_seconds": 0.0}
    monkeypatch.setattr(chunk, "CHUNK_SECONDS", 0.0)  # one update at a time
    with pytest.raises(KeyboardInterrupt):
        run(small(), RunOptions(run_dir=path, **options))
    monkeypatch.undo()
    (path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
    assert (path / "checkpoints" / "4").exists() and latest(path) == 3
    run(small(), RunOptions(resume=path, **options))
    assert_same_run(path, whole)
    assert not Checkpoints(path / "checkpoints", {}).orphans()
    assert not list(path.glob("checkpoints/*tmp*"))


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(tmp_path, monkeypatch):
    monkeypatch.setattr(chunk, "CHUNK_SECONDS", 0.0)  # one update at a time
    path = tmp_path / "a"
    run(small(), RunOptions(run_dir=path, eval_episodes=0, checkpoint_seconds=0))
    before = rows(path)
    for file in path.glob("checkpoints/*.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match="are missing, though 640 environment steps"):
        run(small(), RunOptions(resume=path))
    # Several checkpoints without manifests have the same effect if the summary is missing, too.
    (path / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="the checkpoints of .* are missing[.]"):
        run(small(), RunOptions(resume=path))
    assert rows(path) == before


def stop_after_saving(monkeypatch):
    """Send SIGTERM as soon as there is a checkpoint."""
    save = Checkpoints.save

    def save_and_stop(self, *arguments):
        save(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)


def test_damaged_checkpoints_do_not_outlive_the_resume(tmp_path, monkeypatch):
    """These checkpoints are later than those of the resumed run and may have higher scores: if they
    counted among the most recent and the best, they would be kept instead of the new ones."""
    path = tmp_path / "a"
    run(small(total_timesteps=256), RunOptions(run_dir=path, eval_episodes=0))
    checkpoints = add_damaged_checkpoints(path, [8, 9, 10])
    assert checkpoints.steps() == [4, 8, 9, 10] and checkpoints.best() == 10
    stop_after_saving(monkeypatch)
    with pytest.warns(UserWarning, match="checkpoint 8: .* damaged"):
        assert run(small(), RunOptions(resume=path, checkpoint_seconds=0)) == 143
    assert checkpoints.steps() == [4, 5] and checkpoints.best() in (4, 5)
    with warnings.catch_warnings(action="error"):
        assert load(path)[2].update == 5
        assert load(path, "best")[2].update in (4, 5)


def test_a_checkpoint_is_scored_by_the_episodes_since_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(chunk, "CHUNK_SECONDS", 0.0)  # one update at a time
    path = tmp_path / "a"
    run(small(), RunOptions(run_dir=path, eval_episodes=0, checkpoint_seconds=0))
    returns = {row["update"]: row["episode_return"] for row in rows(path)}
    manifests = [*path.glob("checkpoints/*.json")]
    assert len(manifests) >= 3
    for file in manifests:
        score, expected = json.loads(file.read_text())["score"], returns[int(file.stem)]
        assert score == (expected if expected is None else pytest.approx(expected))


def test_one_update_is_saved_and_sessions_add_up(tmp_path):
    """The last update is always saved; seconds, commands and length of both sessions are
    combined."""
    path = tmp_path / "a"
    run(small(total_timesteps=64), RunOptions(run_dir=path, eval_episodes=0))
    summary = json.loads((path / "summary.json").read_text())
    assert summary["env_steps"] == 64 and latest(path) == 1
    manifest.write_json(path, "summary.json", summary | {"train_seconds": 1000.0})
    run(small(total_timesteps=128), RunOptions(resume=path, eval_episodes=0))
    summary = json.loads((path / "summary.json").read_text())
    assert summary["env_steps"] == 128 and latest(path) == 2
    assert summary["train_seconds"] > 1000
    saved = json.loads((path / "config.json").read_text())
    assert saved["config"]["total_timesteps"] == 128 and len(saved["sessions"]) == 2


def test_resets_that_had_to_be_used_twice_are_announced(tmp_path):
    with pytest.warns(UserWarning, match="some were used twice: raise --reset-pool"):
        run(small(reset_pool=1), RunOptions(run_dir=tmp_path / "a", eval_episodes=0))


def test_tensorboard_is_asked_for_before_compiling(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e .*\[tensorboard\]"):
        run(small(), RunOptions(run_dir=tmp_path / "a", tensorboard=True))
    assert not (tmp_path / "a").exists()


def test_divergence_stops_the_run_and_keeps_what_was_good(tmp_path, monkeypatch):
    path = tmp_path / "a"
    options = {"eval_episodes": 0, "checkpoint_seconds": 0.0}
    run(small(), RunOptions(run_dir=path, **options))
    good, logged = final_state(path), rows(path)
    unchanged = configs.to_flat(small())

    # The resumed program diverges because parameters are scaled beyond float32.
    def broken(static, env=None):
        step = step_of(static, env)
        return lambda state, frozen, floats: step(
            state, frozen, floats | {"learning_rate": 1e38, "max_grad_norm": jnp.inf}
        )

    step_of = experiment.step_of
    monkeypatch.setattr(experiment, "step_of", broken)
    longer = configs.from_flat(unchanged | {"total_timesteps": 1280})
    with pytest.raises(
        Diverged, match=r"(is|are) not finite.* at update \d+ .*learning rate that is too high"
    ):
        run(longer, RunOptions(resume=path, **options))
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "diverged" and summary["env_steps"] >= 640
    assert rows(path)[:10] == logged
    assert all(r["loss"] is not None for r in rows(path))  # valid updates only
    assert len(rows(path)) == summary["updates"]
    _, _, state = load(path, "10")
    key = jax.random.key_data(state.key)
    jax.tree.map(np.testing.assert_array_equal, good, state.replace(key=key))


# --- processes ------------------------------------------------------------------------------

LONG = ["--num-envs", "4", "--num-steps", "32", "--hidden", "8", "--total-timesteps", "2e6",
        "--eval-episodes", "4", "--preset", "none"]  # fmt: skip


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "ppo_jax.train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def latest(path: Path) -> int:
    return max((int(p.stem) for p in path.glob("checkpoints/*.json")), default=0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    process = start(*LONG, "--run-dir", path)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return path


def resume(path: Path) -> None:
    process = start("--resume", path, "--eval-episodes", 4)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output


@pytest.mark.slow
def test_kill_minus_nine_at_any_moment_leaves_a_resumable_run(tmp_path, uninterrupted):
    """Killed while it saves after every chunk, also before the first checkpoint."""
    path = tmp_path / "killed"
    for more in (0, 1, 3):
        arguments = (
            ["--resume", path] if (path / "config.json").exists() else [*LONG, "--run-dir", path]
        )
        process = start(*arguments, "--checkpoint-seconds", 0)
        newest = latest(path)
        if more:
            wait_for(lambda newest=newest: latest(path) > newest, process)
            time.sleep(0.07 * more)
        else:
            wait_for((path / "config.json").exists, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resume(path)
    assert_same_run(uninterrupted, path)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_chunk_saves_and_says_where(tmp_path, uninterrupted, number, code):
    path = tmp_path / "stopped"
    process = start(*LONG, "--run-dir", path)
    wait_for(lambda: (path / "metrics.jsonl").exists() and rows(path), process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert f"--resume {path}" in output
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == f"stopped by {number.name}"
    assert 0 < summary["env_steps"] < 2e6 and summary["eval_return_mean"] is None
    assert rows(path)[-1]["env_step"] == summary["env_steps"]
    resume(path)
    assert_same_run(uninterrupted, path)


def test_a_signal_while_evaluating_is_heard(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        key = jax.random.fold_in(jax.random.key(0), experiment.EVALUATION)  # as for sweeps
        np.testing.assert_array_equal(*map(jax.random.key_data, (arguments[0], key)))
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    evaluate = experiment.evaluate
    monkeypatch.setattr(experiment, "evaluate", interrupted)
    assert run(small(), RunOptions(run_dir=tmp_path / "a", eval_episodes=4)) == 143
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["env_steps"] == 640 and summary["eval_episodes"] == 4
    assert summary["status"] == "finished"


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path):
    """The command `python -m ppo_jax.train | head -1`."""
    path = tmp_path / "a"
    process = start(*LONG, "--run-dir", path, "--total-timesteps", "2e4")
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert json.loads((path / "summary.json").read_text())["status"] == "finished"


def test_a_second_interrupt_stops_at_once(tmp_path):
    """The first signal arrives while the program compiles, which cannot be interrupted."""
    path = tmp_path / "stopped"
    process = start(*LONG, "--run-dir", path)
    wait_for((path / "config.json").exists, process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 2


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch):
    """Checkpoints that cannot be written are warnings, except for the last one, which is an
    error."""

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Checkpoints, "save", full)
    with (
        pytest.warns(UserWarning, match=r"not saved \(.*No space left.*\); continuing"),
        pytest.raises(RunFailed, match="final state could not be saved.*--resume"),
    ):
        run(small(), RunOptions(run_dir=tmp_path / "a", checkpoint_seconds=0))
    assert len(rows(tmp_path / "a")) == 10
