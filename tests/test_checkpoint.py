"""Checkpoints are restored bit for bit or refused: damage, foreign files and interrupted writes."""

import errno
import json
import logging
import random
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppo_jax.config import TrainConfig
from ppo_jax.runs import checkpoint
from ppo_jax.runs.checkpoint import CheckpointError, Checkpoints, write_json
from ppo_jax.train import build

IDENTITY = {"env": "CartPole-v1", "num_envs": 4}


@pytest.fixture(scope="module")
def state():
    config = TrainConfig(num_envs=4, num_steps=8, total_timesteps=64, hidden=(8,))
    program = build(config)
    return jax.jit(lambda key: program.step(program.init(key))[0])(jax.random.key(0))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_a_train_state_comes_back_bit_for_bit(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(7, state, score=1.0)
    shapes = jax.eval_shape(lambda: state)
    step, restored = Checkpoints(tmp_path, IDENTITY).restore(shapes)
    assert step == 7
    assert_same(restored, state)


@pytest.mark.parametrize("compared", [0, checkpoint.COMPARED_BYTES])
def test_arrays_without_elements_come_back(tmp_path, monkeypatch, compared):
    """Orbax refuses them; the states of navix contain one."""
    monkeypatch.setattr(checkpoint, "COMPARED_BYTES", compared)
    state = {"patches": jnp.zeros((4, 0, 3), jnp.int8), "x": jnp.arange(3.0)}
    Checkpoints(tmp_path, IDENTITY).save(1, state)
    assert_same(Checkpoints(tmp_path, IDENTITY).restore(jax.eval_shape(lambda: state))[1], state)
    other = {**state, "patches": jnp.zeros((5, 0, 3), jnp.int8)}
    with pytest.raises(CheckpointError, match="patches"):
        Checkpoints(tmp_path, IDENTITY).restore(jax.eval_shape(lambda: other))


def test_the_last_few_and_the_best_are_kept(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep=2)
    for step, score in enumerate([1.0, 9.0, None, 3.0, 4.0]):
        checkpoints.save(step, state, score)
    assert checkpoints.steps() == [1, 3, 4]
    assert checkpoints.best() == 1
    checkpoints.save(5, state, 9.0)
    assert checkpoints.best() == 5 and checkpoints.steps() == [4, 5]


def test_saving_a_step_again_replaces_it(tmp_path, state):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(3, state)
    later = state.replace(update=state.update + 5)
    checkpoints.save(3, later)
    assert checkpoints.restore(state)[1].update == later.update


def save_two(folder, state):
    checkpoints = Checkpoints(folder, IDENTITY)
    checkpoints.save(1, state)
    checkpoints.save(2, state.replace(update=state.update + 1))
    return checkpoints


def test_any_flipped_bit_is_found(tmp_path, state):
    """Without digests, three quarters of these flipped bits would be restored as wrong numbers."""
    checkpoints = save_two(tmp_path, state)
    files = [p for p in (tmp_path / "2").rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 3
    rng = random.Random(0)
    for path in files:
        whole = path.read_bytes()
        place = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.warns(
            UserWarning, match="checkpoint 2: 1 of .* damaged .*; trying the previous one"
        ):
            step, restored = checkpoints.restore(state)
        assert step == 1
        assert_same(restored, state)
        with pytest.raises(CheckpointError, match="checkpoint 2"):
            checkpoints.restore(state, step=2)
        path.write_bytes(whole)
    assert checkpoints.restore(state)[0] == 2


def test_truncated_and_missing_files_are_found(tmp_path, state):
    checkpoints = save_two(tmp_path, state)
    largest = max(
        (p for p in (tmp_path / "2").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.restore(state)[0] == 1
    largest.unlink()
    with pytest.warns(UserWarning, match="missing"):
        assert checkpoints.restore(state)[0] == 1
    shutil.rmtree(tmp_path / "1")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="--overwrite"):
        checkpoints.restore(state)


def test_a_step_without_its_manifest_does_not_count(tmp_path, state):
    """The files that remain after kill -9 between Orbax's commit and the manifest."""
    checkpoints = save_two(tmp_path, state)
    (tmp_path / "2.json").unlink()
    assert checkpoints.steps() == [1]
    checkpoints.save(2, state)  # is not blocked by the remains
    assert checkpoints.restore(state)[0] == 2


def test_a_damaged_manifest_is_damage(tmp_path, state):
    checkpoints = save_two(tmp_path, state)
    whole = (tmp_path / "2.json").read_text()
    for damaged in ("{", "null", "3", "{}", whole.replace("float32", "fdoat32"), whole[:-5]):
        (tmp_path / "2.json").write_text(damaged)
        with pytest.warns(UserWarning, match="manifest is damaged"):
            assert checkpoints.restore(state)[0] == 1
        assert checkpoints.best() is None


def test_a_full_disk_is_an_os_error_and_leaves_nothing_half_done(tmp_path, state, monkeypatch):
    """Orbax raises ValueError('RESOURCE_EXHAUSTED: ...')."""
    checkpoints = save_two(tmp_path, state)
    before = {p.name for p in tmp_path.iterdir()}

    def full(*_, **__):
        (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand much more")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    with pytest.raises(OSError, match=r"^RESOURCE_EXHAUSTED: No space left on device$"):
        checkpoints.save(3, state)
    assert {p.name for p in tmp_path.iterdir()} == before


def test_writes_that_end_after_a_failed_save_are_not_told_of(tmp_path, state, monkeypatch):
    """TensorStore's threads find a closed event loop; all other errors are still reported."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: told.append(about.exc_value))

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    for step in (3, 4):  # the second finds nothing to do
        with pytest.raises(OSError, match="RESOURCE_EXHAUSTED"):
            Checkpoints(tmp_path, {}).save(step, state)
    full = OSError(errno.ENOSPC, "No space left on device")
    tensorstore = ValueError("RESOURCE_EXHAUSTED: ... [OS error 28: No space left on device]")
    late = RuntimeError("Event loop is closed")
    for error in (late, full, tensorstore, RuntimeError("another"), OSError(2, "gone"), None):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(e) for e in told] == ["another", "[Errno 2] gone", "None"]
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "", (), (None, late, None))
    assert not logging.getLogger("asyncio").filter(record)
    other = logging.LogRecord("asyncio", logging.ERROR, "", 0, "slow callback", (), None)
    assert logging.getLogger("asyncio").filter(other)


def test_leftovers_of_a_killed_save_are_harmless(tmp_path, state):
    checkpoints = save_two(tmp_path, state)
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    (tmp_path / ".3.json.tmp").write_text("{")
    assert checkpoints.restore(state)[0] == 2
    checkpoints.save(3, state)
    assert checkpoints.steps() == [1, 2, 3]
    (tmp_path / "9").mkdir()
    (tmp_path / ".9.saving").write_text("")
    checkpoints.clean(after=3)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{k}{s}" for k in (1, 2, 3) for s in ("", ".json")
    }


def test_a_checkpoint_half_deleted_does_not_look_whole(tmp_path, state, monkeypatch):
    """A process that was killed between writing the manifest and the arrays."""
    checkpoints = save_two(tmp_path, state)
    delete = checkpoint.delete

    def killed(path):
        monkeypatch.setattr(checkpoint, "delete", lambda path: None)
        delete(path)

    monkeypatch.setattr(checkpoint, "delete", killed)
    checkpoints.discard(2)
    assert checkpoints.steps() == [1] and (tmp_path / "2").exists()
    assert checkpoints.restore(state)[0] == 1


def test_another_runs_checkpoint_is_refused_by_name(tmp_path, state):
    save_two(tmp_path, state)
    other = Checkpoints(tmp_path, IDENTITY | {"num_envs": 8, "env": "Pendulum-v1"})
    with pytest.raises(
        CheckpointError, match=r"env \('CartPole-v1' there, 'Pendulum-v1' here\), num_envs"
    ):
        other.restore(state)


def test_options_that_are_younger_than_a_checkpoint_were_at_their_defaults(tmp_path, state):
    save_two(tmp_path, state)
    for value, fits in (("none", True), ("gru", False)):
        younger = Checkpoints(tmp_path, IDENTITY | {"memory": value}, defaults={"memory": "none"})
        if fits:
            assert younger.restore(state)[0] == 2
        else:
            with pytest.raises(CheckpointError, match=r"memory \('none' there, 'gru' here\)"):
                younger.restore(state)


def test_another_shape_is_refused_by_name(tmp_path, state):
    checkpoints = save_two(tmp_path, state)
    wider = state.replace(key=jax.random.split(state.key, 2))
    with pytest.raises(
        CheckpointError, match=r"\.key is key<fry>\[\] there and key<fry>\[2\] here"
    ):
        checkpoints.restore(wider)
    halved = state.replace(
        learner=state.learner.replace(
            params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.learner.params)
        )
    )
    with pytest.raises(CheckpointError, match="float32.* there and bfloat16.* here"):
        checkpoints.restore(halved)


def test_metrics_that_are_younger_than_a_checkpoint_are_zero(tmp_path, state):
    """No update reads the metrics of the last rollout; other arrays are refused."""
    checkpoints = save_two(tmp_path, state)
    metrics = state.rollout.metrics | {"new": jnp.ones(3)}
    more = state.replace(rollout=state.rollout.replace(metrics=metrics))
    _, restored = checkpoints.restore(jax.eval_shape(lambda: more))
    np.testing.assert_array_equal(restored.rollout.metrics["new"], np.zeros(3))
    assert_same(restored.learner, checkpoints.restore(state)[1].learner)
    other = state.replace(learner=state.learner.replace(extra={"new": jnp.ones(3)}))
    with pytest.raises(CheckpointError, match=r"\.learner\.extra.* is None there"):
        checkpoints.restore(other)


def test_nothing_there_is_said(tmp_path, state):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Checkpoints(tmp_path, IDENTITY).restore(state)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text()) == {"x": 1}
