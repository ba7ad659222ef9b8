"""The command that measures an accelerator: tried on the CPU, and its programs lowered for CUDA."""

import csv
import importlib.metadata
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement
from scipy import stats

from benchmarks.accelerator import (
    checks,
    control,
    language,
    learning,
    peers,
    report,
    requirements,
    roofline,
    session,
)
from benchmarks.accelerator.tasks import FIELDS, Context
from benchmarks.accelerator.worker import SECTIONS, tasks_of
from benchmarks.language import ours
from benchmarks.table import read
from ppo_jax import config as configs
from ppo_jax.runner import make_chunk
from ppo_jax.sweep import program as sweep
from ppo_jax.train import build

ROOT = Path(session.__file__).parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.accelerator"]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=ROOT,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """(what the command printed, its rows by section and task) of a trial on the CPU."""
    out = tmp_path_factory.mktemp("trial")
    done = run("--smoke", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [*csv.DictReader((out / report.FILE).open())]
    return done.stdout, {(r["section"], r["task"]): r for r in rows}


def test_a_trial_measures_every_task_or_says_why_not(trial):
    rows = trial[1]
    for section, task in session.order():
        mine = [r for key, r in rows.items() if key == (section, task)]
        mine += [r for key, r in rows.items() if session.is_part(key, (section, task))]
        assert mine, (section, task)
        for row in mine:
            assert bool(row["value"]) != bool(row["why"]), row
            assert row["device"] and row["started"] and tuple(row) == FIELDS
            assert {"jax", "jaxlib", "python"} <= json.loads(row["versions"]).keys()
    unmeasured = {(r["section"], r["task"]): r["why"] for r in rows.values() if r["why"]}
    assert {section for section, _ in unmeasured} <= {"peers", "control"}
    assert all("not installed" in why for why in unmeasured.values()), unmeasured


def test_a_trial_fills_the_columns(trial):
    rows = trial[1]
    trained = [r for (s, t), r in rows.items() if s == "control" and "ceilings" not in t]
    for row in (r for r in trained if r["value"]):
        low, value, high = (float(row[n]) for n in ("low", "value", "high"))
        assert 0 < low <= value <= high and float(row["compile_seconds"]) > 0
        assert float(row["program_mb"]) > 0 and float(row["peak_mb"]) > 100
        assert row["host_transfers"] == "0"
        assert 0 < float(row["of_matmul"]) < 2 and float(row["of_bandwidth"]) > 0
    precisions = {r["task"]: r["precision"] for r in trained}
    assert precisions["cartpole-8192x32-h256-highest"] == "highest"
    assert precisions["cartpole-8192x32-h256"] == "default"
    for name in ("gpt2-124m", "llama-1.3b"):
        row = rows["language", name]
        assert 0 < float(row["generation_share"]) < 1 and row["host_transfers"] == "0"
        assert row["precision"] == "bfloat16" and float(row["of_matmul"]) > 0
    for name in learning.CHECKED:
        row = rows["learning", name]
        assert float(row["low"]) < float(row["value"]) < float(row["high"])
        assert int(row["seeds"]) == 2 and int(row["env_steps"]) > 0 and row["threshold"]
    checked = [r for (s, _), r in rows.items() if s == "checks"]
    assert [r["passed"] for r in checked] == ["True"] * 3
    assert float(rows["checks", "cartpole-resumed: difference"]["value"]) == 0


def test_a_trial_prints_its_table(trial):
    assert "| cartpole-2048x32 |" in trial[0] and "PufferLib 5.0" in trial[0]


def test_a_run_that_is_cut_keeps_its_rows(tmp_path):
    words = [*COMMAND, "--smoke", "--sections", "control", "--out", str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as it:
        until = time.monotonic() + 120
        while len(read(tmp_path / report.FILE)) < 5 and time.monotonic() < until:
            time.sleep(0.05)
        it.send_signal(signal.SIGKILL)
    rows = read(tmp_path / report.FILE)
    assert len(rows) >= 5 and all(r["value"] for r in rows)


def test_without_an_accelerator_it_refuses_in_one_line(tmp_path):
    done = run("--out", str(tmp_path), JAX_PLATFORMS="cpu")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--smoke" in done.stderr and not [*tmp_path.iterdir()]


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    done = run("--out", str(tmp_path), JAX_PLATFORMS="cuda")
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert "cuda" in done.stderr and done.stderr.count("\n") == 1 and not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--minutes", "0"], "--minutes is 0.0"),
        (["--sections", "controll"], "unknown 'controll'"),
        (["--purejaxrl", "."], "no ppo.py"),
        (["--peers", "nowhere"], "not a folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, says):
    done = run(*words)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and says in done.stderr


# Workers that fail


FAKE = """
import json, sys, time
def say(x): print(json.dumps(x), flush=True)
say({"device": "fake", "platform": "cpu", "versions": {}})
for line in sys.stdin:
    task = json.loads(line)["task"]
    if task == "dies": sys.exit(3)
    if task == "hangs": time.sleep(600)
    if task == "fails": say({"why": "error: ValueError: no"})
    else: say({"rows": [{"value": 1.0, "unit": "x", "passed": task != "wrong"}]})
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A session whose worker is FAKE, with tasks of these names."""
    session.order()  # kept from now on, with the tasks that there really are
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda words, **more: start([sys.executable, "-c", FAKE], **more)
    )

    def make(*names: str) -> session.Session:
        made = {n: session.Task("control", n, lambda c: {}, 0.5 if n == "hangs" else 20.0, 0.1)
                for n in names}  # fmt: skip
        monkeypatch.setattr(session, "tasks_of", lambda section: made)
        return session.Session(tmp_path, True, 60.0, None, None, str(tmp_path), ("control",))

    return make


@pytest.mark.parametrize(
    ("name", "why"),
    [("dies", "ended with code 3"), ("hangs", "no answer within"), ("fails", "ValueError: no")],
)
def test_a_task_that_fails_costs_only_itself(fake, tmp_path, name, why):
    failed = fake("first", name, "last").run()
    rows = {r["task"]: r for r in read(tmp_path / report.FILE)}
    assert failed == [f"control: {name}"]
    assert [rows[n]["value"] for n in ("first", name, "last")] == ["1.0", "", "1.0"]
    assert why in rows[name]["why"]


def test_a_check_that_does_not_hold_is_a_failure(fake):
    assert fake("first", "wrong").run() == ["control: wrong"]


def test_what_there_is_no_time_for_is_a_row(fake, tmp_path):
    made = fake("first")
    made.seconds = 0.01
    assert made.run() == []
    assert [r["why"] for r in read(tmp_path / report.FILE)] == ["no time left"]


def test_before_learning_a_part_of_the_time_is_left(fake):
    made = fake("first")
    assert made.left("control") == pytest.approx(0.75 * 60, abs=1)
    assert made.left("learning") == pytest.approx(60, abs=1)


# What is measured


def mlp_products(*widths: int) -> int:
    return sum(a * b for a, b in itertools.pairwise(widths))


def test_the_work_of_a_step_is_that_of_its_products():
    config = configs.make(preset="none", num_envs=256, num_steps=32, total_timesteps=10**6)
    work = roofline.work_of(config)
    products = mlp_products(4, 64, 64, 2) + mlp_products(4, 64, 64, 1)
    assert work.flops == pytest.approx(2 * products * (1 + 3 * 4), rel=1e-6)
    row = 4 * 4 + 8 * 4 + 2
    parameters = 4 * (mlp_products(4, 64, 64, 2) + mlp_products(4, 64, 64, 1) + 4 * 64 + 3)
    assert work.bytes == pytest.approx(row * 5 + 7 * parameters * 16 / 8192)


def test_products_are_counted_wherever_they_are():
    x, w = jnp.ones((3, 4)), jnp.ones((4, 5))
    image, kernel = jnp.ones((2, 10, 10, 3)), jnp.ones((3, 3, 3, 7))
    once = 2 * 3 * 4 * 5

    def looped(x, w):
        return jax.lax.scan(lambda c, _: (c @ w @ w.T, None), x, None, length=6)[0]

    def convolved(image, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "VALID", dimension_numbers=numbers
        )

    assert roofline.flops_of(jnp.matmul, x, w) == once
    assert roofline.flops_of(jax.jit(lambda x, w: jnp.sin(x @ w)), x, w) == once
    assert roofline.flops_of(looped, x, w) == 6 * 2 * once
    assert roofline.flops_of(convolved, image, kernel) == 2 * (2 * 8 * 8 * 7) * (3 * 3 * 3)


def test_the_parent_leaves_the_device_to_the_workers():
    """Whoever touches a GPU first takes most of its memory."""
    code = (
        "from benchmarks.accelerator import session; session.order()\n"
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.strip() == "False", done.stderr


def test_the_work_of_a_recurrent_step_counts_the_cell():
    config = configs.make(
        preset="none", num_envs=16, num_steps=8, memory="gru", memory_size=64, total_timesteps=1024
    )
    plain = configs.make(preset="none", num_envs=16, num_steps=8, total_timesteps=1024)
    more = roofline.work_of(config).flops - roofline.work_of(plain).flops
    assert more >= 2 * 2 * 3 * (64 * 64 + 64 * 64) * 13  # two cells of three gates


def test_shares_are_rates_over_ceilings():
    ceilings = {"default": 10.0, "highest": 5.0, "copy": 100.0}
    found = roofline.shares(roofline.Work(1e6, 1e4), 1e6, ceilings, "highest")
    assert found["tflops_per_second"] == 1.0 and found["of_matmul"] == 0.2
    assert found["gb_per_second"] == 10.0 and found["of_bandwidth"] == 0.1


def test_updates_of_other_starts_do_not_pass_for_the_same():
    config = configs.make(preset="cartpole", num_envs=8, num_steps=8, total_timesteps=10**4)
    start = jax.jit(build(config).init)(jax.random.key(0))
    other = start.replace(key=jax.random.key(1))
    device = jax.devices()[0]
    change = checks.change(config, start, device)
    assert checks.distance(change, checks.change(config, start, device)) == 0
    assert checks.distance(change, checks.change(config, other, device)) > 10 * checks.TOLERANCE


def test_a_number_that_is_not_finite_is_no_agreement():
    assert checks.distance({"a": jnp.array([jnp.nan])}, {"a": jnp.ones(1)}) == np.inf


def test_the_interval_over_seeds_is_students():
    returns = np.array([3.0, 5.0, 10.0])
    found = learning.interval(returns)
    low, high = stats.t.interval(0.95, 2, returns.mean(), stats.sem(returns))
    assert [found[n] for n in ("low", "value", "high")] == [round(x, 2) for x in (low, 6.0, high)]


def test_learning_stops_when_the_time_is_up():
    config = configs.make(preset="none", num_envs=4, num_steps=8, total_timesteps=32 * 50)
    static, floats = sweep.structure(config)
    program = sweep.compile_program(static, None, 2, jax.devices(), 0)
    seeds = jnp.arange(2, dtype=jnp.uint32)
    values = {n: jnp.full(2, x, jnp.float32) for n, x in floats.items()}
    state, updates, _ = learning.train(program, seeds, values, 50, until=0.0)
    assert updates == 1 and state.update.tolist() == [1, 1]
    state, updates, _ = learning.train(program, seeds, values, 50, until=float("inf"))
    assert updates == 50 and state.update.tolist() == [50, 50]


# Programs for CUDA, without a device


def lowered(function, *arguments) -> str:
    """A function's text as it would be compiled for a GPU."""
    return jax.export.export(jax.jit(function), platforms=["cuda"])(*arguments).mlir_module()


@pytest.mark.parametrize("name", [*control.SHARED, *control.OWN])
def test_training_programs_do_not_leave_the_device(name):
    config, _ = control.configuration(name, smoke=False)
    suite = config.env.partition(":")[0]
    if suite in control.PACKAGES:
        pytest.importorskip(control.PACKAGES[suite])
    static, floats = configs.split(config)
    program = build(config)
    state = jax.eval_shape(program.init, jax.random.key(0))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    text = lowered(make_chunk(static, program.env), state, floats, count)
    assert "stablehlo.while" in text and control.transfers_in(text) == 0


@pytest.mark.parametrize("size", language.SHAPES, ids=lambda size: size.name)
def test_language_programs_do_not_leave_the_device(size):
    program = ours.build(language.dataclasses.replace(size, **language.TINY))[0]
    state = jax.eval_shape(program.init, jax.random.key(0))
    text = lowered(program.step, state, program.frozen)
    assert control.transfers_in(text) == 0


def test_a_program_that_leaves_the_device_is_found():
    def calls(x):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), jnp.float32), x)

    one = jax.ShapeDtypeStruct((), jnp.float32)
    assert control.transfers_in(jax.jit(calls).lower(one).as_text()) > 0
    assert control.host_transfers(jax.jit(calls).lower(one).compile()) > 0
    assert control.host_transfers(jax.jit(lambda x: x + 1).lower(one).compile()) == 0
    assert control.transfers_in("f32[8]{0:T(128)S(5)} copy(x)") == 1


# What is carried, and what is published


def needs(package: str, found: set[str]) -> set[str]:
    """A package and all that it needs, by the installed metadata."""
    name = re.sub(r"[-_.]+", "-", package).lower()
    if name in found:
        return found
    found.add(name)
    for line in importlib.metadata.requires(package) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needs(requirement.name, found)
    return found


def test_the_requirements_are_what_is_needed_beyond_the_usual_packages():
    usual: set[str] = set()
    for name in ("jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "numpy", "scipy",
                 "matplotlib", "rich", "safetensors", "pillow"):  # fmt: skip
        needs(name, usual)
    ours: set[str] = set()
    for name in ("gymnax", "tyro", "six", "absl-py"):
        needs(name, ours)
    drawing = needs("seaborn", set())
    assert ours - usual - drawing <= {*requirements.NEEDED} <= ours


def test_the_requirements_are_printed_by_a_python_without_packages():
    done = subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks.accelerator", "--requirements"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    lines = done.stdout.split()
    assert [line.partition("==")[0] for line in lines] == [*requirements.NEEDED]
    for line in lines:
        name, version = line.split("==")
        assert importlib.metadata.version(name) == version


def test_what_is_published_names_a_task_and_its_source():
    for row in report.published():
        assert row["task"] in {*control.SHARED, *control.OWN}
        assert float(row["steps_per_second"]) > 1e6 and row["source"] and row["conditions"]


def test_every_section_has_tasks_of_its_own_name():
    for section in SECTIONS:
        assert {task.section for task in tasks_of(section).values()} == {section}
    assert {*peers.CELLS} <= {*control.SHARED}


# The page


def test_until_there_is_a_row_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.markdown(tmp_path) == report.NOTHING + "\n"
    keep(tmp_path, device="cpu")
    assert report.markdown(tmp_path) == report.NOTHING + "\n"


def test_a_row_stands_beside_what_is_published(tmp_path):
    keep(tmp_path, device="NVIDIA H100")
    text = report.markdown(tmp_path)
    assert "NVIDIA H100:" in text and "20,000,000" in text
    assert "12,880,000 (PufferLib 5.0, NVIDIA RTX 5090)" in text and "12.5 %" in text
    report.plot(tmp_path, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def keep(folder: Path, device: str) -> None:
    """One row, as a session writes it."""
    made = session.Session(folder, True, 60.0, None, None, "")
    made.common = {"device": device}
    row = {"value": 2e7, "unit": "environment steps/s", "of_matmul": 0.125}
    made.keep("control", "cartpole-8192x32", [row])


def test_rows_stand_in_the_order_of_the_run(tmp_path):
    made = session.Session(tmp_path, True, 60.0, None, None, "")
    made.common = {"device": "x"}
    for section, task in (("learning", "breakout"), ("control", "ceilings"), ("checks", "other")):
        made.keep(section, task, [{"part": "b", "value": 1.0}, {"part": "a", "value": 2.0}])
    made.keep("control", "ceilings", [{"part": "b", "value": 3.0}])
    rows = [(r["task"], r["value"]) for r in read(tmp_path / report.FILE)]
    assert rows[:2] == [("ceilings: a", "2.0"), ("ceilings: b", "3.0")]
    assert rows[2:4] == [("breakout: b", "1.0"), ("breakout: a", "2.0")]
    assert [task for task, _ in rows[4:]] == ["other: b", "other: a"]  # not known any more


def test_a_peer_that_is_missing_says_what_to_give():
    assert "--peers" in peers.missing("rejax", None, None)
    assert "--purejaxrl" in peers.missing("purejaxrl", ROOT, None)
    assert peers.missing("rejax", ROOT, None) == ""


def test_a_smoke_context_is_what_tasks_take():
    assert Context(True, 1.0, {}).ceilings == {}
