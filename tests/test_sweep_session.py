"""Sweeps with folders (store, keep, session, publish, command): files, interruption, resumption and
refusals."""

import csv
import html
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ppo_jax.cli import sweep as command
from ppo_jax.config import ConfigError
from ppo_jax.evaluate import evaluate
from ppo_jax.experiment import EVALUATION
from ppo_jax.runs import chunk
from ppo_jax.runs.folder import RunDirectory
from ppo_jax.runs.restore import load
from ppo_jax.runs.trust import Given
from ppo_jax.sweep import publish as publishing
from ppo_jax.sweep import run_seeds, session, store
from ppo_jax.sweep.results import diverged, penalise
from ppo_jax.sweep.store import CONTENTS, Store, SweepDirectory, read_sessions, read_spec

FLAGS = [
    "--preset", "none", "--num-envs", "4", "--num-steps", "32", "--total-timesteps", "640",
    "--hidden", "16", "16", "--vary", "learning_rate=1e-3,1e-2", "--seeds", "3",
    "--agents-per-device", "2", "--eval-episodes", "4",
]  # fmt: skip
COLUMNS = ["configuration", "seed", "env_step", "metric", "value"]


def sweep(path: Path, *more: str, flags=FLAGS) -> int:
    return command.run_command([*flags, "--run-dir", str(path), *more])


def table(path: Path) -> bytes:
    return (path / "results.csv").read_bytes() + (path / "agents.csv").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweeps") / "a"
    assert sweep(path, "--confirm", "2") == 0
    return path


def copy(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def test_a_sweep_leaves_what_is_promised(finished):
    with (finished / "results.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [*rows[0]] == COLUMNS
    assert {(r["configuration"], r["seed"]) for r in rows} == {(p, s) for p in "01" for s in "012"}
    returns = [r for r in rows if r["metric"] == "episode_return" and r["configuration"] == "1"]
    assert [int(r["env_step"]) for r in returns[:5]] == [128, 256, 384, 512, 640]
    evaluations = [r for r in rows if r["metric"] == "eval_return"]
    assert len(evaluations) == 6 and {r["env_step"] for r in evaluations} == {"640"}
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["configurations"], summary["seeds"]) == (2, 3)
    session = summary["last_session"]
    assert (session["compiled_programs"], session["env_steps"]) == (1, 6 * 640)
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png") == page.count("data:application/pdf") == 4
    assert "Sensitivity to learning_rate" in page and page.count('class="copy"') == 2
    latex = (finished / "table.tex").read_text()
    assert html.escape(latex) in page and latex.count("CartPole-v1 &") == 2
    drawn = {p.suffix for p in (finished / "figures").iterdir()}
    assert drawn == {".png", ".pdf", ".svg"}
    spec, options = read_spec(finished)
    assert spec.points == [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]
    assert options["confirm"] == 2


def test_the_table_holds_the_numbers_of_run_seeds(finished):
    spec, _ = read_spec(finished)
    _, metrics = run_seeds(spec.configs[1], 3, agents_per_device=2)
    found = Store(finished, spec).results()[1]
    np.testing.assert_allclose(found.metrics["loss"], metrics["loss"], rtol=1e-4, atol=1e-5)
    assert not diverged(metrics).any()
    with (finished / "results.csv").open() as file:
        values = [float(r["value"]) for r in csv.DictReader(file) if r["metric"] == "loss"]
    np.testing.assert_allclose(values[15:20], found.metrics["loss"][0], rtol=1e-6)


def test_the_best_agent_of_each_point_is_kept_and_plays(finished):
    with (finished / "agents.csv").open() as file:
        agents = [*csv.DictReader(file)]
    kept = sorted(p.name for p in (finished / "agents").iterdir())
    expected = []
    for p in "01":
        best = max((a for a in agents if a["configuration"] == p), key=lambda a: float(a["score"]))
        expected.append(f"configuration000{p}_seed{best['seed']}")
    assert kept == expected
    config, program, state = load(finished / "agents" / kept[0])
    assert int(state.update) == 5 and config.hyper.learning_rate == 1e-3
    saved = json.loads((finished / "agents" / kept[0] / "summary.json").read_text())
    assert saved["eval_return_mean"] == pytest.approx(
        max(float(a["score"]) for a in agents if a["configuration"] == "0")
    )
    # Evaluated with a key that training does not use: the one of a run with that seed.
    played = evaluate(
        jax.random.fold_in(jax.random.key(config.seed), EVALUATION),
        state.learner.params,
        state.rollout.moments,
        env=program.env,
        policy=program.policy,
        episodes=4,
    )
    assert saved["eval_return_mean"] == pytest.approx(float(played.episode_return.mean()))


def test_the_best_point_is_confirmed_on_seeds_that_did_not_choose_it(finished):
    spec, _ = read_spec(finished / "confirm")
    assert spec.seeds == (3, 4)
    assert len(spec.configs) == 1
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["confirmed"][0]["seeds"] == 2
    assert summary["best"] == f"learning_rate={spec.configs[0].hyper.learning_rate:g}"
    page = (finished / "report.html").read_text()
    assert "confirmation only" in page and "selection" in page
    assert "Intervals from fewer than 10 seeds are too narrow" in page


KILLED = """
import os, signal, sys
from ppo_jax.cli import sweep as command
from ppo_jax.sweep import store
append, calls = store.Store._append, []
def append_half(self, finished):
    calls.append(1)
    if len(calls) == 2:
        with (self.path / "results.csv").open("a") as file:
            file.write("0,2,128,los")
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, finished)
store.Store._append = append_half
command.run_command(sys.argv[1:])
"""


@pytest.mark.slow
def test_kill_minus_nine_in_the_middle_leaves_the_table_of_an_uninterrupted_sweep(
    finished, tmp_path
):
    """Killed while it writes the second of three chunks, after half of its rows."""
    path = tmp_path / "killed"
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": os.environ["PPO_JAX_TEST_CACHE"]}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *FLAGS, "--run-dir", str(path)],
        env=environment,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in (path / "chunks").glob("*.json")] == ["00000.json"]
    first = (path / "chunks/00000.npz").stat().st_mtime_ns
    assert command.run_command(["--resume", str(path)]) == 0
    assert table(path) == table(finished)
    assert (path / "table.csv").read_bytes() == (finished / "table.csv").read_bytes()
    assert (path / "chunks/00000.npz").stat().st_mtime_ns == first  # not trained again
    assert sorted(p.name for p in (path / "agents").iterdir()) == sorted(
        p.name for p in (finished / "agents").iterdir()
    )


def test_a_signal_stops_between_slices_and_keeps_what_is_finished(
    finished, tmp_path, monkeypatch, capsys
):
    show = session._Session._show

    shown = []

    def stop_in_the_second(self, agents, update, *rest):
        if self.finished and agents:
            shown.append(update)
            if update > 1:
                os.kill(os.getpid(), signal.SIGTERM)
        show(self, agents, update, *rest)

    path = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(chunk, "CHUNK_SECONDS", 0.0)  # one update at a time
        patch.setattr(session._Session, "_show", stop_in_the_second)
        assert sweep(path) == 143
    assert [u > 1 for u in shown].count(True) == 1  # nothing was trained after the signal
    assert "--resume" in capsys.readouterr().out
    assert not (path / "report.html").exists()
    assert sweep(path, "--resume") == 0  # the same command again
    assert table(path) == table(finished)
    printed = capsys.readouterr().out
    assert "layout: 2 chunks of 2 agents over 1 device (" in printed


def test_resuming_what_is_finished_only_reports_again(finished, tmp_path):
    path = copy(finished, tmp_path / "again")
    (path / "report.html").unlink()
    sessions = read_sessions(path)
    assert command.run_command(["--resume", str(path), "--threshold", "20"]) == 0
    assert (path / "report.html").exists()
    assert (path / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()
    assert read_sessions(path) == sessions  # no training took place
    with (path / "table.csv").open() as file:
        assert next(csv.DictReader(file))["threshold"] == "20.0"


def damaged_arrays(path):
    file = path / "chunks/00001.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damaged_manifest(path):
    (path / "chunks/00001.json").write_text("{")


def foreign_chunk(path):
    file = path / "chunks/00001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sweep": "another"}))


def lost_plan(path):
    (path / "plan.json").unlink()


def damaged_plan(path):
    (path / "plan.json").write_text("[1]")


def no_sessions(path):
    file = path / "sweep.json"
    (path / "manifest.json").unlink()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sessions": []}))


def other_options(path):
    file = path / "sweep.json"
    (path / "manifest.json").unlink()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"options": {}}))


def damaged_spec(path):
    (path / "sweep.json").write_text('{"sweep": {}}')


def changed_spec(path):
    file = path / "sweep.json"
    file.write_text(file.read_text().replace("0.99", "0.98"))


def lost_spec(path):
    (path / "sweep.json").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damaged_arrays, "00001.npz is damaged.*delete .*to train the chunk again"),
        (damaged_manifest, "00001.json is damaged"),
        (foreign_chunk, "belongs to another sweep"),
        (lost_plan, "plan.json is missing"),
        (damaged_plan, "plan.json is damaged"),
        (damaged_spec, "sweep.json is damaged"),
        (no_sessions, "its sessions are"),
        (changed_spec, "sweep.json is damaged: it does not match its digest in manifest.json"),
        (other_options, "sweep.json is damaged"),
        (lost_spec, "is not a sweep: it has no sweep.json"),
    ],
)
def test_a_damaged_sweep_is_refused_with_the_reason(finished, tmp_path, damage, says):
    path = copy(finished, tmp_path / "damaged")
    damage(path)
    with pytest.raises(ConfigError, match=says):
        command.run_command(["--resume", str(path)])


def test_a_deleted_chunk_is_made_again(finished, tmp_path):
    path = copy(finished, tmp_path / "less")
    for file in (path / "chunks").glob("00001.*"):
        file.unlink()
    assert command.run_command(["--resume", str(path)]) == 0
    assert table(path) == table(finished)


def test_a_confirmation_that_is_not_whole_is_mended(finished, tmp_path):
    path = copy(finished, tmp_path / "half")
    for file in (path / "confirm/chunks").glob("00000.*"):
        file.unlink()
    assert command.run_command(["--resume", str(path)]) == 0
    assert table(path / "confirm") == table(finished / "confirm")
    saved = [json.loads((p / "summary.json").read_text())["confirmed"] for p in (path, finished)]
    assert saved[0] == saved[1]


def test_only_what_a_sweep_left_itself_is_deleted(finished, tmp_path):
    path = copy(finished, tmp_path / "mine")
    (path / "chunks/00007.npz").write_text("")  # of an unfinished chunk
    (path / "chunks/.00007.npz.tmp").write_text("")
    (path / "chunks/mine").mkdir()
    (path / "chunks/copy.npz").write_text("")
    assert command.run_command(["--resume", str(path)]) == 0
    left = {p.name for p in (path / "chunks").iterdir()}
    assert {"mine", "copy.npz"} < left and not left & {"00007.npz", ".00007.npz.tmp"}


@pytest.mark.parametrize("name", [*CONTENTS, ".lock", "chunks/00000.npz", "agents/a"])
def test_a_sweep_with_a_link_out_of_its_folder_is_refused(tmp_path, name):
    path, outside = tmp_path / "sweep", tmp_path / "thesis.txt"
    (path / name).parent.mkdir(parents=True)
    (path / "sweep.json").write_text('{"sweep": {}, "options": {}}')
    outside.write_text('{"sweep": {}, "options": {}}')
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(outside)
    with pytest.raises(ConfigError, match="link out of the folder|not a sweep"):
        SweepDirectory(path)
    assert "options" in outside.read_text()


def test_only_a_sweep_is_overwritten_and_only_what_is_its_own(finished, tmp_path):
    path = copy(finished, tmp_path / "old")
    theirs = [
        "chunks/notes.txt",
        "figures/mine.png",
        "agents/point_of_view/a",
        "confirm/a",
        "slurm/a",
        "a.csv",
    ]
    for name in theirs:
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        (path / name).write_text("mine")
    (path / "slurm/0123456789abcdef").mkdir()  # files of a session's jobs
    (path / "slurm/0123456789abcdef/1_0_log.err").write_text("")
    with SweepDirectory(path) as directory:
        directory.clear()
        assert not directory.used
    left = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert left == {*theirs, ".lock"}


def test_a_sweep_that_died_before_its_first_chunk_begins_again(finished, tmp_path):
    path = copy(finished, tmp_path / "early")
    for name in ("chunks", "agents", "confirm"):
        shutil.rmtree(path / name)
    (path / "plan.json").unlink()
    assert command.run_command(["--resume", str(path)]) == 0
    assert table(path) == table(finished)


@pytest.mark.slow
def test_environments_and_what_diverges_on_disk(tmp_path):
    """Two programs; on Pendulum, an agent with invalid weights returns NaN actions."""
    words = [
        "--preset", "none", "--num-envs", "2", "--num-steps", "256", "--total-timesteps", "1024",
        "--hidden", "8", "--vary", "env=CartPole-v1,Pendulum-v1",
        "--vary", "learning_rate=1e-3,1e30",
        "--sample", "2", "--seeds", "2", "--eval-episodes", "2", "--run-dir", str(tmp_path / "two"),
    ]  # fmt: skip
    assert command.run_command(words) == 0
    path = tmp_path / "two"
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["configurations"], summary["diverged"]) == (4, 4)
    assert summary["best"] == "learning_rate=0.001"
    found = penalise(Store(path, read_spec(path)[0]).results())
    bad = next(r for r in found if r.env == "Pendulum-v1" and r.diverged.all())
    good = next(r for r in found if r.env == "Pendulum-v1" and not r.diverged.any())
    assert np.isfinite(bad.score).all() and bad.score.max() <= good.score.min()
    assert len([*(path / "agents").iterdir()]) == 4
    with (path / "agents.csv").open() as file:
        states = [r["status"] for r in csv.DictReader(file)]
    assert states.count("diverged") == 4


def test_a_foreign_directory_is_refused(finished, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/mine.png").write_text("")
    with pytest.raises(ConfigError, match="not a sweep and not empty"):
        sweep(tmp_path)
    with pytest.raises(ConfigError, match="not a sweep and not empty"):
        sweep(tmp_path, "--overwrite")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a sweep and not empty"):
        sweep(run, "--overwrite")
    with pytest.raises(ConfigError, match="a run of ppo_jax.train"):
        sweep(run, "--resume")
    with pytest.raises(ConfigError, match="not a run and not empty"):
        RunDirectory(copy(finished, tmp_path / "sweep"))


def test_a_finished_sweep_is_not_overwritten_by_accident(finished):
    with pytest.raises(ConfigError, match="already holds a sweep; continue it with"):
        sweep(finished)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--seeds", "4"], "these differ: seeds"),
        (["--gamma", "0.5"], "these differ: gamma"),
        (["--agents-per-device", "3"], "--agents-per-device 2, given 3; another number"),
        (["--keep", "all"], "--keep best, given all; agents that were not kept"),
        (["--confirm", "3"], "other seeds or values; move it away to confirm with 3"),
        (["--overwrite"], "omit --run-dir and --overwrite"),
    ],
)
def test_a_resumed_sweep_is_the_same_sweep(finished, more, says):
    with pytest.raises(ConfigError, match=says):
        sweep(finished, "--resume", *more)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--vary", "num_envs=3", "--minibatches", "5"], "does not divide"),
        (["--vary", "env=Nowhere-v1"], "Nowhere-v1"),
        (["--agents-per-device", "many"], "agents_per_device is 'many'"),
        (["--sample", "9"], "only 2 combinations"),
        (["--seed", "4294967295"], "out of range"),
        (["--seed", "4294967290", "--confirm", "9"], "no 9 seeds after"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, more, says):
    with pytest.raises(Exception, match=says):
        sweep(tmp_path / "new", *more)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("flag", "value"), [("--agents-per-device", "3"), ("--keep", "all")])
def test_what_the_first_session_settled_stays(finished, flag, value):
    """Also if no other flag is given."""
    with pytest.raises(
        ConfigError, match=f"the sweep has {flag} .*, given {value}; .* so it stays"
    ):
        command.run_command(["--resume", str(finished), flag, value])


def test_a_sweep_of_an_earlier_version_is_continued(finished, tmp_path):
    """It has another name for the number of agents per device, and for the folders of agents."""
    path = copy(finished, tmp_path / "older")
    content = json.loads((path / "sweep.json").read_text())
    content.pop("signature", None)
    content["options"]["batch_size"] = content["options"].pop("agents_per_device")
    (path / "sweep.json").write_text(json.dumps(content))
    (path / "manifest.json").unlink()
    for agent in [*(path / "agents").iterdir()]:
        agent.rename(agent.with_name(agent.name.replace("configuration", "point")))
    assert read_spec(path, Given(trust=True))[1]["agents_per_device"] == "2"
    names = {p.name for p in (finished / "agents").iterdir()}
    store.rename_agents(path / "agents")
    assert {p.name for p in (path / "agents").iterdir()} == names
    (path / "agents" / f"{min(names)}.txt").write_text("")
    store.rename_agents(path / "agents")
    store.clear_agents(path / "agents")
    assert [p.name for p in (path / "agents").iterdir()] == [f"{min(names)}.txt"]


def test_the_older_flag_is_read_and_named():
    with pytest.warns(UserWarning, match="--batch-size of a sweep is now --agents-per-device"):
        found = command._renamed(["--batch-size", "2", "--batch_size=3", "--seeds", "4"])
    assert found == ["--agents-per-device", "2", "--agents-per-device=3", "--seeds", "4"]


def test_fresh_seeds_have_no_say_in_the_ranking(finished, tmp_path, monkeypatch):
    """A confirmation with worse returns than before does not change the table."""
    path = copy(finished, tmp_path / "worse")
    found = Store(path, read_spec(path)[0]).results()
    diverging = found[0]._replace(diverged=np.array([True, False, False]))
    worse = Store(path / "confirm", read_spec(path / "confirm")[0]).results()[0]
    worse = worse._replace(score=worse.score - 10_000)
    tables = []
    for fresh in ([], [worse]):
        monkeypatch.setattr(Store, "results", lambda self: [diverging, found[1]])
        monkeypatch.setattr(publishing, "_confirmation", lambda path, fresh=fresh: fresh)
        publishing.publish(Store(path, read_spec(path)[0]), None, {})
        tables.append((path / "table.csv").read_bytes())
    assert tables[0] == tables[1]


def test_two_sweeps_are_compared(finished, tmp_path, capsys):
    words = ["--compare", str(finished), str(finished), "--run-dir", str(tmp_path / "out")]
    assert command.run_command(words) == 0
    with (finished / "table.csv").open() as file:
        best = next(csv.DictReader(file))["learning_rate"]
    said = f"IQM of [{finished}: learning_rate={best} (2 fresh seeds)]"
    assert said in capsys.readouterr().out
    numbers = json.loads((tmp_path / "out/comparison.json").read_text())["difference"]
    assert numbers["CartPole-v1"]["difference"] == 0
    assert numbers["CartPole-v1"]["probability_of_improvement"] == 0.5
    assert "data:image/png" in (tmp_path / "out/comparison.html").read_text()
    with pytest.raises(ConfigError, match="--compare only reads; --seeds"):
        command.run_command([*words, "--seeds", "3"])
    with pytest.raises(ConfigError, match="holds a sweep"):
        command.run_command([*words[:3], "--run-dir", str(finished)])


def test_the_algorithm_and_the_environment_may_vary():
    """Each starts from its own preset; flags apply to all."""
    words = [
        "--vary",
        "algorithm=ppo,a2c",
        "--vary",
        "env=CartPole-v1,Pendulum-v1",
        "--gamma",
        "0.9",
    ]
    base = command.base_config(words)
    config, values = command.parse(words, base, **command.FLAGS)
    points = command.PointOptions(vary=values["vary"])
    spec = command.build_spec(words, config, points)
    found = [(c.algorithm, c.env, c.num_steps, c.hyper.gamma) for c in spec.configs]
    assert found == [
        ("ppo", "CartPole-v1", 64, 0.9),
        ("ppo", "Pendulum-v1", 128, 0.9),
        ("a2c", "CartPole-v1", 16, 0.9),
        ("a2c", "Pendulum-v1", 32, 0.9),
    ]


def test_the_command_gives_each_core_a_device(tmp_path):
    """If no other option is given."""
    code = (
        "import jax; from ppo_jax.cli.sweep import one_device_per_core as f; f(); "
        "print(len(jax.devices()))"
    )
    counts = {}
    for flags in ("", "--xla_force_host_platform_device_count=3"):
        environment = {n: v for n, v in os.environ.items() if n != "JAX_NUM_CPU_DEVICES"}
        environment["XLA_FLAGS"] = flags
        counts[flags] = int(
            subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, check=True
            ).stdout
        )
    assert [*counts.values()] == [len(os.sched_getaffinity(0)), 3]
    devices = jax.devices()
    os.environ.pop("JAX_NUM_CPU_DEVICES")
    try:
        command.one_device_per_core()  # too late for this process, without an error
    finally:
        os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    assert jax.devices() == devices
