"""The folder of a run: digests, links, interrupted writes, and which files are deleted."""

import dataclasses
import json
import os
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ppo_jax.config import ConfigError
from ppo_jax.runs import chunk, files, loop, manifest
from ppo_jax.runs.checkpoint import CheckpointError, Checkpoints
from ppo_jax.runs.folder import CONTENTS, RunDirectory, write_description
from ppo_jax.runs.job import Job, RunFailed
from ppo_jax.runs.metrics_log import Averaged, read_metrics
from ppo_jax.runs.options import KeepOptions
from ppo_jax.runs.record import RunRecord
from ppo_jax.runs.signals import Signals

JOB = Job(
    name="counting",
    init=lambda: jnp.zeros((), jnp.int32),
    shapes=jax.ShapeDtypeStruct((), jnp.int32),
    step=lambda state, frozen, floats: (state + 1, {"height": state.astype(jnp.float32) + 1}),
    updates=4,
    unit="sequences",
    units_per_update=10,
    headline="height",
    score=("height", None),
    samples=lambda state, n: [{"prompt": "a", "response": "b"}] * n,
)


@dataclasses.dataclass(frozen=True)
class Options(KeepOptions):
    """A job with samples, as the stages of language models have them."""

    samples: int = 1
    sample_seconds: float = 0.0


class Sampled(RunDirectory):
    """The folder of a run of this job."""

    contents = (*CONTENTS, "samples.jsonl")


@pytest.fixture(autouse=True)
def one_update_per_chunk(monkeypatch):
    monkeypatch.setattr(chunk, "CHUNK_SECONDS", 0.0)


def session(path, updates=4, **options):
    """A run of a few updates, started as by a command."""
    kept = Options(**({"run_dir": path} if "resume" not in options else {}) | options)

    def describe(path):
        write_description(
            path, {"config": {"env": "x", "algorithm": "y", "updates": updates}, "run": {}}, None
        )

    job = JOB._replace(updates=updates)
    with Sampled.opened(kept, "counting", describe) as directory:
        path = directory.path
        about = {"identity": {}, "about": {}, "config": {}, "describe": lambda: describe(path)}
        record = RunRecord(path, kept, **about, quiet=True)
        return loop.run(job, record, signals=Signals())


def resume(path, updates=8):
    return session(path, updates, resume=path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / "made"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunk, "CHUNK_SECONDS", 0.0)
        session(path, checkpoint_seconds=0)
    return path


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def heights(path):
    return [row["height"] for row in read_metrics(path / "metrics.jsonl")]


# --- names of directories ----------------------------------------------------------------------

NAMES = [
    "hidden=[64,64]",
    "a*b?",
    "{x}",
    "-x",
    "line\nfeed",
    "\\[x",
    "größe/",
    ".hidden",
    "x" * 250,
]


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_of_a_directory_of_any_name_are_read_again(tmp_path, name, monkeypatch):
    """Orbax treats brackets as a pattern and cannot read a path with them."""
    monkeypatch.chdir(tmp_path)
    assert int(session(Path(name), 2).state) == 2
    assert int(resume(Path(name), 3).state) == 3


def test_a_link_to_a_directory_elsewhere_is_a_directory(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "run").symlink_to("large disk")
    session(tmp_path / "run", 2)
    assert int(resume(tmp_path / "run", 3).state) == 3
    assert (tmp_path / "large disk" / "checkpoints").is_dir()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\udcff", "/".join(["x" * 200] * 20)])
def test_a_directory_that_cannot_be_is_refused_before_training(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot"):
        session(tmp_path / name)


def test_what_cannot_be_read_again_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_read", lambda *_: {"x": jnp.ones(1)})
    with pytest.raises(ConfigError, match="checkpoints cannot be stored in .*when read back"):
        session(tmp_path / "[x]")
    assert not (tmp_path / "[x]" / "config.json").exists()


def test_a_checkpoint_that_comes_back_otherwise_does_not_count(tmp_path, monkeypatch):
    read = Checkpoints._read
    monkeypatch.setattr(Checkpoints, "_read", lambda *a: read(*a) + 1)
    with pytest.raises(RunFailed, match="differs from the saved state when read back"):
        session(tmp_path / "run")
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_a_large_state_is_read_back_by_its_structure(tmp_path, monkeypatch):
    monkeypatch.setattr("ppo_jax.runs.checkpoint.COMPARED_BYTES", 1)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, {"x": jnp.arange(3)})
    assert checkpoints.restore({"x": jnp.arange(3)})[0] == 1


# --- digests -----------------------------------------------------------------------------------


def test_every_file_is_listed_with_its_digest(made):
    entries = manifest.read(made)
    there = {p.name for p in made.iterdir()} - {".lock", "manifest.json", "checkpoints"}
    saved = {f"checkpoints/{p.name}" for p in (made / "checkpoints").glob("*.json")}
    assert entries.keys() == there | saved and len(saved) == 3
    assert not any("or" in entry for entry in entries.values())
    for name, entry in entries.items():
        content = (made / name).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), files.digest(made / name))


def flip(path: Path, place: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "samples.jsonl", "summary.json", "manifest.json"]
)
def test_a_flipped_bit_is_named_and_nothing_is_lost(run, name):
    flip(run / name)
    damaged = (run / name).read_bytes()
    with pytest.warns(UserWarning, match=f"{name} is damaged"):
        assert int(resume(run).state) == 8
    if name != "manifest.json":
        assert (run / name).with_stem(f"{name.split('.')[0]}.unverified").read_bytes() == damaged
    with warnings.catch_warnings(action="error"):
        assert not manifest.look(run)


def test_a_digit_of_a_configuration_is_found(run):
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"updates": 4', '"updates": 6'))
    with pytest.raises(ConfigError, match=r"config.json is damaged: .* Copy the file back .*del"):
        manifest.require(run, "config.json")
    (run / "manifest.json").unlink()
    manifest.require(run, "config.json")
    with pytest.warns(UserWarning, match="manifest.json is missing"):
        resume(run)


def test_rows_after_the_last_checkpoint_are_not_damage(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 5, "env_step": 50, "height": 5.0}\n{"upd')
    with warnings.catch_warnings(action="error"):
        resume(run)
    assert heights(run) == list(range(1, 9))


@pytest.mark.parametrize(
    ("damage", "says", "left"),
    [
        (lambda p: (p / "metrics.jsonl").unlink(), "metrics.jsonl is missing", [5, 6, 7, 8]),
        (lambda p: os.truncate(p / "metrics.jsonl", 200), "metrics.jsonl is damaged", None),
        (lambda p: (p / "summary.json").unlink(), "summary.json is missing", list(range(1, 9))),
    ],
)
def test_a_file_that_is_gone_is_named(run, damage, says, left):
    damage(run)
    with pytest.warns(UserWarning, match=says):
        assert int(resume(run).state) == 8
    assert left is None or heights(run) == left


def test_a_run_without_its_mark_or_its_checkpoints_is_refused(run):
    shutil.move(run / "checkpoints", run / "kept")
    with (
        pytest.warns(UserWarning, match="4.json is missing"),
        pytest.raises(CheckpointError, match="though 40 .* were saved"),
    ):
        resume(run)
    (run / "config.json").unlink()
    with pytest.raises(ConfigError, match="no config.json, which its manifest lists"):
        resume(run)


def test_figures_may_be_deleted(run):
    (run / "learning_curve.png").unlink()
    with warnings.catch_warnings(action="error"):
        resume(run)
    assert (run / "learning_curve.png").exists()


def test_a_manifest_of_somebody_else_or_a_strange_one_is_no_obstacle(run):
    (run / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    assert manifest.read(run) == {}
    for entries in ([], {"config.json": 3}, {"config.json": {"bytes": "x", "sha256": "y"}}):
        content = {"format": manifest.FORMAT, "files": entries}
        content["sha256"] = manifest._digest_of(content)
        (run / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match="manifest.json is damaged"):
            manifest.read(run)
    (run / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="manifest.json is damaged"):
        manifest.read(run)


def test_a_log_that_is_deleted_while_it_is_written_is_said(tmp_path):
    def save(path):
        (path / "metrics.jsonl").unlink(missing_ok=True)

    job = JOB._replace(samples=None)
    kept = Options(run_dir=tmp_path / "run")
    with RunDirectory.opened(kept, "x", lambda path: None) as directory:
        record = RunRecord(directory.path, kept, identity={}, about={}, config={}, quiet=True)
        remove = [lambda progress, state: save(directory.path)]
        with pytest.warns(UserWarning, match="metrics.jsonl was deleted or replaced"):
            loop.run(job, record, signals=Signals(), callbacks=remove)


# --- crashes -----------------------------------------------------------------------------------


class Killed(BaseException):
    """Raised in place of kill -9: the program does nothing after it."""


def killed_at(monkeypatch, number: int) -> None:
    """End the process just before the n-th time that a file is replaced or deleted."""
    count = 0

    def counted(function):
        def wrapped(*arguments, **more):
            nonlocal count
            count += 1
            if count >= number:  # and nothing happens afterwards
                raise Killed
            return function(*arguments, **more)

        return wrapped

    for name in ("replace", "unlink", "rename", "rmdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))


CRASHES = [pytest.param(n, marks=() if n % 4 == 1 else pytest.mark.slow) for n in range(1, 45)]


@pytest.mark.parametrize("number", CRASHES)
def test_a_crash_at_any_write_is_no_damage(run, monkeypatch, number):
    """A file and its digest are written in two steps, and so is a checkpoint."""
    with monkeypatch.context() as patched:
        killed_at(patched, number)
        with pytest.raises(Killed):
            session(run, 12, resume=run, checkpoint_seconds=0)
    with warnings.catch_warnings(action="error"):
        assert int(resume(run, 12).state) == 12
        assert not manifest.look(run)
    assert heights(run) == list(range(1, 13))
    left = [p.name for p in run.rglob(".*") if p.name != ".lock"]
    assert not left, left


@pytest.mark.parametrize("number", range(1, 8))
def test_a_crash_at_the_first_writes_leaves_a_run_or_an_empty_folder(tmp_path, monkeypatch, number):
    with monkeypatch.context() as patched:
        killed_at(patched, number)
        with pytest.raises(Killed):
            session(tmp_path / "run", 2)
    again = (tmp_path / "run/config.json").exists()
    with warnings.catch_warnings(action="error"):
        (resume if again else session)(tmp_path / "run", 2)


# --- links -------------------------------------------------------------------------------------

FILES = [
    ".lock", ".metrics.jsonl.tmp", ".summary.json.tmp", ".config.json.tmp", "config.json",
    "metrics.jsonl", "summary.json", "learning_curve.png", "checkpoints", "tensorboard", "wandb",
    "trackers.json", "samples.jsonl", "manifest.json", "policy.onnx", "checkpoints/4.json",
    "checkpoints/4", "checkpoints/4/state/_METADATA", "checkpoints/9.orbax-checkpoint-tmp",
    "checkpoints/.9.saving", "checkpoints/9.json", "checkpoints/9",
]  # fmt: skip


def place(kind: str, inside: Path, outside: Path) -> None:
    """Replace a file by a link to a file with the same content outside the folder."""
    if inside.is_dir() or inside.exists():
        shutil.move(inside, outside)
    elif kind == "folder":
        outside.mkdir()
        (outside / "thesis.txt").write_text("chapter 1")
    else:
        outside.write_text("chapter 1")
    if kind == "fifo":
        os.mkfifo(inside)
    elif kind == "hard":
        shutil.copy(outside, outside.with_suffix(".copy"))
        os.link(outside, inside)
    else:
        inside.symlink_to(outside)


KINDS = ["symbolic", "hard", "fifo", "folder", "dangling"]
ALL = [(name, kind) for name in FILES for kind in KINDS]
QUICK = [
    *zip(FILES, KINDS * 5, strict=False),
    ("metrics.jsonl", "hard"),
    ("checkpoints", "symbolic"),
]


@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(*x, marks=() if x in QUICK else pytest.mark.slow) for x in ALL],
)
def test_nothing_outside_the_folder_is_touched(run, tmp_path, name, kind):
    """Whether a session refuses or resumes the folder; files outside it must not change."""
    outside = tmp_path / "outside"
    outside.mkdir()
    if kind == "hard" and (run / name).is_dir():
        pytest.skip("directories have no hard links")
    if kind == "dangling":
        files.delete(run / name)
        (run / name).symlink_to(outside / "not there")
    else:
        place(kind, run / name, outside / "it")
    before = tree(outside)
    for options in ({"resume": run}, {"overwrite": True}):
        with warnings.catch_warnings(action="ignore"):
            try:
                session(run, 5, **options)
            except (ConfigError, CheckpointError, RunFailed) as error:
                assert "\n" not in str(error)
        assert tree(outside) == before


def test_a_link_out_of_the_folder_is_named(run, tmp_path):
    (run / "learning_curve.png").unlink()
    (run / "learning_curve.png").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"learning_curve.png is a link out of the folder \(to "):
        resume(run)
    (run / "learning_curve.png").unlink()
    (run / "learning_curve.png").symlink_to("metrics.jsonl")  # within: replaced, not followed
    resume(run)
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_read_is_a_regular_file_of_the_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe")
    (tmp_path / "folder" / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder" / "away").symlink_to(__file__)
    for name in ("pipe", "zero", "away", "."):
        with pytest.raises(OSError):
            files.read_text(tmp_path / "folder" / name)


# --- files of other programs -------------------------------------------------------------------


def hugging_face(path):
    content = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 2}
    (path / "config.json").write_text(json.dumps(content))


def web_app(path):
    content = {"config": {"port": 80}, "run": {"command": "npm start"}}
    (path / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("owner", [hugging_face, web_app])
def test_a_config_json_of_somebody_else_makes_no_run(tmp_path, owner):
    owner(tmp_path)
    for name in ("checkpoints", "wandb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "theirs").write_text("1")
    before = tree(tmp_path)
    for options in ({"overwrite": True}, {}, {"resume": tmp_path}):
        with pytest.raises(ConfigError, match="is not a run"):
            session(tmp_path, **options)
    assert tree(tmp_path) == before


def test_a_run_of_an_earlier_version_counts(run):
    content = json.loads((run / "config.json").read_text())
    del content["format"]
    (run / "config.json").write_text(json.dumps(content))
    (run / "manifest.json").unlink()
    with warnings.catch_warnings(action="error"):
        resume(run)
    assert json.loads((run / "config.json").read_text())["format"] == "ppo_jax run"
    assert "summary.json" in manifest.read(run)


def test_a_damaged_config_json_is_still_that_of_a_run(run):
    flip(run / "config.json", 0)
    session(run, 2, overwrite=True)
    assert heights(run) == [1, 2]


THEIRS = ["checkpoints/2021/notes.txt", "checkpoints/x-tmp/a", "checkpoints/.mine.tmp/a",
          "checkpoints/2021.json.bak", "tensorboard/notes.txt", "wandb/mine/a", "notes.txt",
          "checkpoints/6/thesis.txt"]  # fmt: skip


def test_only_what_is_ours_is_deleted(run):
    for name in THEIRS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    (run / "checkpoints/7.orbax-checkpoint-tmp").mkdir()
    with pytest.warns(UserWarning, match="checkpoints/6 occupies the .* kept as 6.unverified"):
        session(run, 8, resume=run, checkpoint_seconds=0)
    assert (run / "checkpoints/6.unverified/thesis.txt").exists()
    session(run, 2, overwrite=True)
    kept = {name for name in THEIRS if (run / name).is_file()}
    assert kept == {*THEIRS} - {"checkpoints/6/thesis.txt"}
    assert not (run / "checkpoints/7.orbax-checkpoint-tmp").exists()


def test_a_checkpoint_without_its_manifest_is_named_and_kept(run):
    whole = tree(run / "checkpoints/4")
    (run / "checkpoints/4.json").unlink()
    with pytest.warns(UserWarning, match="4.json is missing, so that checkpoint 4 cannot be"):
        assert int(resume(run, 6).state) == 6
    found = [run / "checkpoints/4", run / "checkpoints/4.unverified"]
    assert any(p.is_dir() and tree(p) == whole for p in found)


def test_a_damaged_checkpoint_is_kept_beside_the_others(run):
    flip(run / "checkpoints/4/_CHECKPOINT_METADATA", 5)
    with pytest.warns(UserWarning, match="checkpoint 4: 1 of .* damaged"):
        resume(run, 6)
    assert (run / "checkpoints/4.unverified.json").exists()


# --- failing disks -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "metrics.jsonl"])
def test_a_full_disk_leaves_the_earlier_file(run, monkeypatch, name):
    """Writing one file fails half way, and all later writes fail, too."""
    replacing, full = files.replacing, False

    def refusing(path, before=None):
        nonlocal full
        full = full or path.name == name
        if full:
            raise OSError(28, os.strerror(28))
        return replacing(path, before)

    with monkeypatch.context() as patched, warnings.catch_warnings(action="ignore"):
        patched.setattr(files, "replacing", refusing)
        with pytest.raises((OSError, RunFailed)):
            resume(run)
    with warnings.catch_warnings(action="error"):
        assert int(resume(run).state) == 8


def test_a_write_that_fails_half_way_keeps_the_earlier_content(tmp_path):
    files.write_bytes(tmp_path / "a", b"whole")
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a") as file:
        file.write(b"ha")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_removed_while_the_run_goes_on_is_said(tmp_path):
    kept = Options(run_dir=tmp_path / "run", samples=0)
    with RunDirectory.opened(kept, "x", lambda path: None) as directory:
        record = RunRecord(directory.path, kept, identity={}, about={}, config={}, quiet=True)

        def remove(progress, state):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(RunFailed, match="the folder .* does not exist any more"),
        ):
            loop.run(JOB, record, signals=Signals(), callbacks=[remove])
    assert not (tmp_path / "run").exists()


# --- lines of the log --------------------------------------------------------------------------


def test_a_line_of_the_log_is_the_mean_of_the_updates_since_the_one_before():
    rows = [
        {"update": 1, "env_step": 8, "episodes": 1, "episode_return": 2.0, "loss": 1.0,
         "episode_return_min": 2.0, "episode_return_max": 2.0, "episode_return_std": 0.0},
        {"update": 2, "env_step": 16, "episodes": 0, "episode_return": None, "loss": 2.0,
         "episode_return_min": None, "episode_return_max": None, "episode_return_std": None},
        {"update": 3, "env_step": 24, "episodes": 3, "episode_return": 6.0, "loss": None,
         "episode_return_min": 5.0, "episode_return_max": 8.0, "episode_return_std": 1.0},
    ]  # fmt: skip
    averaged = Averaged(2, ["lost_cuts"])
    first, second = averaged.add(rows[:2]), averaged.add([*rows[2:], {"update": 4, "env_step": 32}])
    assert first == [rows[0] | {"update": 2, "env_step": 16, "loss": 1.5}]
    assert second == [rows[2] | {"update": 4, "env_step": 32}]
    whole = Averaged(3, ()).add(rows)[0]
    assert whole["episodes"] == 4 and whole["episode_return"] == 5.0 and whole["loss"] == 1.5
    assert (whole["episode_return_min"], whole["episode_return_max"]) == (2.0, 8.0)
    assert whole["episode_return_std"] == pytest.approx(((9 + 3 * 1 + 3 * 1) / 4) ** 0.5)


def test_a_line_of_many_updates_needs_no_memory(monkeypatch):
    rows = [{"update": k, "env_step": k, "episodes": k % 3, "episode_return": k if k % 3 else None,
             "loss": None if k % 5 == 0 else k / 7} for k in range(1, 101)]  # fmt: skip
    whole = Averaged(100, ()).add(rows)[0]
    monkeypatch.setattr("ppo_jax.runs.metrics_log.MOST", 6)
    averaged = Averaged(100, ())
    assert averaged.add(rows[:60]) == [] and len(averaged.left) <= 6 and averaged.before == 0
    averaged = Averaged(100, (), json.loads(json.dumps(averaged.left)))
    (line,) = averaged.add(rows[60:])
    assert line == pytest.approx(whole) and line.keys() == whole.keys()


def test_lines_of_several_updates_do_not_depend_on_interruptions(tmp_path):
    session(tmp_path / "whole", 8, log_every=3)
    assert heights(tmp_path / "whole") == [2, 5, 7.5]
    session(tmp_path / "parts", 4, log_every=3)
    assert heights(tmp_path / "parts") == [2, 4]
    session(tmp_path / "parts", 8, resume=tmp_path / "parts", log_every=3)
    assert heights(tmp_path / "parts") == [2, 5, 7.5]


def test_every_name_of_the_contents_is_tried():
    assert {*CONTENTS} - {*FILES} <= {n for n in CONTENTS if n.startswith("policy.")}
