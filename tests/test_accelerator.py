"""The benchmark command for accelerators: run on the CPU, and its programs lowered for CUDA."""

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
from benchmarks.accelerator.__main__ import main
from benchmarks.accelerator.tasks import FIELDS, Context, NotAvailable
from benchmarks.accelerator.worker import SECTIONS, tasks_of
from benchmarks.language import ours
from benchmarks.table import read
from ppo_jax import config as configs
from ppo_jax.experiment import step_of
from ppo_jax.runs.chunk import make_chunk
from ppo_jax.sweep import program as sweep
from ppo_jax.train import build

ROOT = Path(session.__file__).parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.accelerator"]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """(output of a smoke run of all tasks on the CPU, its rows by section and task)."""
    out = tmp_path_factory.mktemp("smoke")
    # Enough minutes for a machine that also runs other tests.
    done = run("--smoke", "--minutes", "20", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [*csv.DictReader((out / report.FILE).open())]
    return done.stdout, {(r["section"], r["task"]): r for r in rows}


@pytest.mark.slow
def test_a_smoke_run_measures_every_task_or_says_why_not(smoke):
    _, rows = smoke
    for section, task in session.order():
        mine = [r for key, r in rows.items() if key == (section, task)]
        mine += [r for key, r in rows.items() if session.is_part(key, (section, task))]
        assert mine, (section, task)
        for row in mine:
            assert bool(row["value"]) != bool(row["why"]), row
            assert row["device"] and row["started"] and tuple(row) == FIELDS
            assert {"jax", "jaxlib", "python"} <= json.loads(row["versions"]).keys()
    unmeasured = {(r["section"], r["task"]): r["why"] for r in rows.values() if r["why"]}
    assert {section for section, _ in unmeasured} <= {"peers", "control", "learning"}
    known = ("not installed", "there is only one device", "a smoke run trains only Breakout")
    assert all(any(k in why for k in known) for why in unmeasured.values()), unmeasured


@pytest.mark.slow
def test_a_smoke_run_fills_the_columns(smoke):
    _, rows = smoke
    trained = [r for (s, t), r in rows.items() if s == "control" and "ceilings" not in t]
    for row in (r for r in trained if r["value"]):
        low, value, high = (float(row[n]) for n in ("low", "value", "high"))
        assert 0 < low <= value <= high and float(row["compile_seconds"]) > 0
        assert float(row["program_mb"]) > 0 and float(row["peak_mb"]) > 100
        assert row["host_transfers"] == "0"
        work = roofline.work_of(control.configuration(row["task"], smoke=True)[0])
        rate, matmul = (
            value / 1e12,
            float(rows["control", f"ceilings: {row['precision']}"]["value"]),
        )
        assert float(row["tflops_per_second"]) == pytest.approx(work.flops * rate, rel=0.02)
        assert float(row["of_matmul"]) == pytest.approx(work.flops * rate / matmul, rel=0.02)
    precisions = {r["task"]: r["precision"] for r in trained}
    assert precisions["cartpole-8192x32-h256-highest"] == "highest"
    assert precisions["cartpole-2048x32"] == "default"
    for name in (task.name for task in language.tasks()):
        row = rows["language", name]
        assert 0 < float(row["generation_share"]) < 1 and row["host_transfers"] == "0"
        assert row["precision"] == "bfloat16" and float(row["of_matmul"]) > 0
    for name in learning.CHECKED:
        row = rows["learning", name]
        assert float(row["low"]) < float(row["value"]) < float(row["high"])
        assert int(row["seeds"]) == 2 and int(row["env_steps"]) > 0 and row["threshold"]
    checked = [r for (s, _), r in rows.items() if s == "checks"]
    assert [r["passed"] for r in checked] == ["True"] * 3
    assert float(rows["checks", "cartpole-resumed"]["value"]) == 0


@pytest.mark.slow
def test_a_smoke_run_prints_its_tables(smoke):
    printed, _ = smoke
    assert "| cartpole-2048x32 |" in printed and "Checks, cpu:" in printed
    assert "PufferLib 5.0" in printed and "Returns of 64 seeds, cpu:" in printed


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
        (["--sections", "controll"], "unknown section 'controll'"),
        (["--tasks", "cartpole-2048"], "unknown task 'cartpole-2048'"),
        (["--purejaxrl", "."], "no ppo.py"),
        (["--peers", "nowhere"], "not a folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, says, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["accelerator", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    done = capsys.readouterr()
    assert stop.value.code == 2 and done.out == "" and done.err.count("\n") == 1
    assert done.err.startswith("error: ") and says in done.err


# --- workers that fail


FAKE = """
import json, sys, time
def say(x): print(json.dumps(x), flush=True)
say({"device": "fake", "platform": "cpu", "versions": {}})
for line in sys.stdin:
    task = json.loads(line)["task"]
    if task == "dies": sys.exit(3)
    if task in ("hangs", "cut"): time.sleep(600)
    if task == "fails": say({"why": "error: ValueError: no"})
    else: say({"rows": [{"value": 1.0, "unit": "x", "passed": task != "wrong"}]})
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Make a session whose worker is FAKE, with tasks of the given names."""
    session.order()  # keep the original tasks
    start = subprocess.Popen

    def make(*names: str, code: str = FAKE) -> session.Session:
        monkeypatch.setattr(
            subprocess, "Popen", lambda words, **more: start([sys.executable, "-c", code], **more)
        )
        patience = {"hangs": 0.5, "cut": 1000.0}
        made = {
            n: session.Task("control", n, lambda c: {}, patience.get(n, 20.0), 0.1) for n in names
        }
        monkeypatch.setattr(session, "tasks_of", lambda section: made)
        return session.Session(tmp_path, True, 60.0, None, None, str(tmp_path), ("control",))

    return make


def values(folder: Path) -> dict[str, str]:
    return {r["task"]: r["value"] for r in read(folder / report.FILE)}


@pytest.mark.parametrize(
    ("name", "why"),
    [("dies", "ended with code 3"), ("hangs", "no answer within"), ("fails", "ValueError: no")],
)
def test_a_task_that_fails_costs_only_itself(fake, tmp_path, name, why):
    failed = fake("first", name, "last").run()
    rows = {r["task"]: r for r in read(tmp_path / report.FILE)}
    assert failed == [f"control: {name}"]
    assert values(tmp_path) == {"first": "1.0", name: "", "last": "1.0"}
    assert why in rows[name]["why"]


def test_after_an_error_the_process_is_another(fake, tmp_path):
    """After the runtime of a device has failed once, all later calls fail."""
    code = FAKE.replace('"unit": "x"', '"unit": str(__import__("os").getpid())')
    fake("first", "second", "fails", "last", code=code).run()
    units = {r["task"]: r["unit"] for r in read(tmp_path / report.FILE)}
    assert units["first"] == units["second"] != units["last"]


def test_a_later_process_that_does_not_start_costs_only_its_tasks(fake, tmp_path):
    marker = tmp_path / "started"
    once = f"""
import pathlib, sys
if pathlib.Path({str(marker)!r}).exists(): sys.exit(7)
pathlib.Path({str(marker)!r}).touch()
"""
    failed = fake("first", "dies", "last", code=once + FAKE).run()
    assert failed == ["control: dies", "control: last"]
    assert values(tmp_path) == {"first": "1.0", "dies": "", "last": ""}


def test_a_first_process_that_does_not_start_is_refused(fake):
    with pytest.raises(session.Refused, match="^its process ended with code 7$"):
        fake("first", code="import sys; sys.exit(7)").run()


def test_a_check_that_does_not_hold_is_a_failure(fake):
    assert fake("first", "wrong").run() == ["control: wrong"]


def test_what_there_is_no_time_for_is_a_row_and_no_failure(fake, tmp_path):
    made = fake("first", "cut", "last")
    made.seconds = 6.0 / session.UNTIL["control"]
    assert made.run() == []
    rows = {r["task"]: r for r in read(tmp_path / report.FILE)}
    assert rows["first"]["value"] == "1.0"
    assert rows["cut"]["why"].startswith("no time left: stopped after")
    assert rows["last"]["why"] == "no time left"


def test_a_start_that_takes_all_the_time_is_no_failure(fake, tmp_path):
    made = fake("first", code="import time; time.sleep(1.5)\n" + FAKE)
    made.seconds = 1.0 / session.UNTIL["control"]
    assert made.run() == []
    assert [r["why"] for r in read(tmp_path / report.FILE)] == ["no time left"]


def test_a_row_without_a_value_replaces_none_with_one(fake, tmp_path):
    fake("first", "fails").run()
    made = fake("first", "fails")
    made.seconds = 0.0
    made.common = {"device": "fake"}
    made.run()
    assert values(tmp_path) == {"first": "1.0", "fails": ""}
    rows = {r["task"]: r for r in read(tmp_path / report.FILE)}
    assert rows["fails"]["why"] == "no time left"


def test_only_chosen_tasks_are_measured_and_share_the_whole_time(fake, tmp_path):
    made = fake("first", "fails", "last")
    made.tasks = ("last",)
    assert made.run() == [] and values(tmp_path) == {"last": "1.0"}
    assert made.left("control") == pytest.approx(60, abs=20) and made.left("control") > 30
    assert made.wanted("last: purejaxrl") and not made.wanted("first: purejaxrl")


def test_the_sections_before_learning_leave_it_time(fake):
    made = fake("first")
    assert made.left("control") == pytest.approx(0.45 * 60, abs=1)
    assert made.left("peers") == pytest.approx(0.7 * 60, abs=1)
    assert made.left("learning") == pytest.approx(60, abs=1)


def test_a_worker_ends_with_its_parent():
    """If the parent is killed, its worker must end, because it holds the device's memory."""
    words = [sys.executable, "-m", "benchmarks.accelerator.worker", "checks", "--smoke"]
    code = (
        "import subprocess, sys, os, signal\n"
        f"it = subprocess.Popen({words!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "it.stdout.readline(); print(it.pid, flush=True)\n"
        "os.set_inheritable(it.stdin.fileno(), True)\n"
        # Another process still holds the other end of its input, so that it receives no end of
        # file.
        "subprocess.Popen(['sleep', '30'], close_fds=False, stdout=subprocess.DEVNULL)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
    try:
        until = time.monotonic() + 20
        while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
            if "Z" in Path(f"/proc/{worker}/stat").read_text().split(")")[1].split()[0]:
                break
            time.sleep(0.1)
        assert time.monotonic() < until
    finally:
        os.killpg(parent.pid, signal.SIGKILL)  # ends the sleeping process


def test_a_signal_ends_the_run_with_its_table_and_its_number(tmp_path):
    words = [*COMMAND, "--smoke", "--sections", "control", "--out", str(tmp_path)]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as it:
        until = time.monotonic() + 120
        while len(read(tmp_path / report.FILE)) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        it.send_signal(signal.SIGTERM)
        printed, _ = it.communicate(timeout=60)
    assert it.returncode == 128 + signal.SIGTERM
    assert "| ceilings: default |" in printed


def test_workers_see_the_cpu_and_no_earlier_programs(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "old")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    found = session.environment(False, "new")
    assert found["JAX_PLATFORMS"] == "cuda,cpu"
    assert found["JAX_COMPILATION_CACHE_DIR"] == "new"
    assert found["XLA_PYTHON_CLIENT_MEM_FRACTION"] == peers.MEMORY
    assert peers.environment(None)["XLA_PYTHON_CLIENT_MEM_FRACTION"] == peers.MEMORY
    assert session.environment(True, "new")["JAX_COMPILATION_CACHE_DIR"] == "old"
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert session.environment(False, "new")["JAX_PLATFORMS"] == ""


# --- measurements


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
    """The first process that uses a GPU reserves most of its memory."""
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
    assert more >= 2 * 2 * 3 * (64 * 64 + 64 * 64) * 13  # two cells with three gates


def test_shares_are_rates_over_ceilings():
    ceilings = {"default": 10.0, "highest": 5.0, "copy": 100.0}
    found = roofline.shares(roofline.Work(1e6, 1e4), 1e6, ceilings, "highest")
    assert found["tflops_per_second"] == 1.0 and found["of_matmul"] == 0.2
    assert found["gb_per_second"] == 10.0 and found["of_bandwidth"] == 0.1
    assert "of_matmul" not in roofline.shares(roofline.Work(1e6, 1e4), 1e6, ceilings, "high")


def test_ceilings_are_work_over_time(monkeypatch):
    """2 n³ operations for a product, one read and one write per number for a copy; median of
    three."""
    taken = iter([9.0, 1e-3, 2e-3] * 4)
    monkeypatch.setattr(roofline, "timer", lambda body, carry, seconds: lambda: next(taken))
    found = roofline.ceilings(smoke=True)
    products = [found[n] for n in ("default", "highest", "bfloat16")]
    assert products == pytest.approx([2 * 256**3 / 2e-3 / 1e12] * 3)
    assert found["copy"] == pytest.approx(2 * 4 * 2**18 / 2e-3 / 1e9)


def test_ceilings_have_the_precision_of_their_names(monkeypatch):
    texts = []

    def timer(body, carry, seconds):
        texts.append(jax.jit(body).lower(carry).as_text())
        return lambda: 1.0

    monkeypatch.setattr(roofline, "timer", timer)
    roofline.ceilings(smoke=True)
    copy, default, highest, narrow = texts
    assert "HIGHEST" in highest and "HIGHEST" not in default + narrow and "bf16" in narrow
    assert "dot_general" not in copy


def test_a_rate_is_that_of_the_middle_round(monkeypatch):
    class Fake:
        compiled = None

        def compile(self):
            pass

        def run(self, updates):
            return updates

    monkeypatch.setattr(control, "OneAgent", lambda config, devices: Fake())
    monkeypatch.setattr(control, "rates", lambda run, seconds: [30.0, 10.0, 11.0])
    monkeypatch.setattr(control, "account", lambda contestant: {})
    row = control.measure("cartpole-2048x32", Context(True, 1.0, {}))
    assert [row[n] for n in ("low", "value", "high")] == [640, 704, 1920]


def test_rounds_count_updates_per_second():
    def run(updates):
        time.sleep(0.01 * updates)
        return updates

    found = control.rates(run, 0.1, first=1)
    assert len(found) == control.ROUNDS and 50 < min(found) <= max(found) <= 100


def test_a_language_row_is_what_was_measured(monkeypatch):
    size = language.dataclasses.replace(language.SHAPES[0], **language.TINY)

    class Fake:
        def __init__(self, size, options, say):
            self.size, self.chunk = size, None
            params = {"layer_0": jnp.ones((16, 100)), "embedding": jnp.ones((30, 16))}
            learner = type("L", (), {"params": {"actor": params}})
            self.state = type("S", (), {"learner": learner})

        def compile(self):
            pass

        run = None

    monkeypatch.setattr(language.ours, "Program", Fake)
    monkeypatch.setattr(language, "rates", lambda run, seconds, first: [2.0, 4.0, 8.0])
    monkeypatch.setattr(language, "generation_seconds", lambda program: 0.1)
    monkeypatch.setattr(language, "bytes_of", lambda chunk: 2**20)
    monkeypatch.setattr(language, "host_transfers", lambda chunk: 0)
    ceilings = {"bfloat16": 2e-5, "default": 1.0}
    row = language.measure(size, Context(True, 1.0, ceilings))
    tokens = 8 * 4
    assert [row[n] for n in ("low", "value", "high")] == [2 * tokens, 4 * tokens, 8 * tokens]
    assert row["generation_share"] == 0.4 and row["precision"] == "bfloat16"
    read_tokens, trunk, head = 8 * (2 + 4 - 1), 1600, 16 * 30
    actor, critic = 2 * (read_tokens * trunk + tokens * head), 2 * read_tokens * trunk
    flops = 3 * actor + 2 * critic + 3 * (actor + critic)
    assert row["tflops_per_second"] == pytest.approx(4 * flops / 1e12, rel=0.01)
    assert row["of_matmul"] == pytest.approx(4 * flops / 1e12 / 2e-5, rel=0.01)
    # Generation is not compiled alone if the time for it is short: the row is written without it.
    monkeypatch.setattr(language, "generation_seconds", None)
    monkeypatch.setattr(language, "ROUNDS", 5.0)
    row = language.measure(size, Context(False, 8.0, ceilings))
    assert row["value"] == 4 * tokens and row["generation_share"] == ""
    with pytest.raises(NotAvailable, match="no time left after compilation, which took 0 s"):
        language.measure(size, Context(False, 4.0, ceilings))
    monkeypatch.setattr(language, "generation_seconds", lambda program: 0.1)
    shared = language.dataclasses.replace(size, shared_critic=True)
    row = language.measure(shared, Context(True, 1.0, ceilings))
    flops = 3 * actor + critic + 3 * actor
    assert row["tflops_per_second"] == pytest.approx(4 * flops / 1e12, rel=0.01)


def test_both_implementations_of_attention_are_measured(monkeypatch):
    """Each model has two tasks; only a smoke run without a GPU replaces cuDNN's."""
    monkeypatch.setattr(language, "measure", lambda size, context: (size.name, size.attention))
    found = [task.measure(Context(False, 1.0, {})) for task in language.tasks()]
    assert found[:2] == [("gpt2-124m", "plain"), ("gpt2-124m-cudnn", "cudnn")]
    assert found[2:] == [("llama-1.3b", "plain"), ("llama-1.3b-cudnn", "cudnn")]
    found = [task.measure(Context(True, 1.0, {})) for task in language.tasks()]
    assert [attention for _, attention in found] == ["plain", "xla"] * 2


def test_a_model_that_does_not_fit_is_not_run(monkeypatch):
    size = language.dataclasses.replace(language.SHAPES[0], **language.TINY)
    fake = type("P", (), {"chunk": None, "compile": lambda self: None})
    monkeypatch.setattr(language.ours, "Program", lambda *_: fake())
    monkeypatch.setattr(language, "bytes_of", lambda chunk: 95e9)
    monkeypatch.setattr(language, "memory_of", lambda devices: 80e9)
    with pytest.raises(NotAvailable, match="needs 95 GB, and the device has 80 GB"):
        language.measure(size, Context(True, 1.0, {}))


def test_the_first_update_is_compared_across_devices_in_float32(monkeypatch):
    """Where each part runs and with what precision; the accelerator is replaced by a stand-in."""
    seen = []

    class Device:
        device_kind = "accelerator"

    def change(config, state, device):
        seen.append((device.device_kind, jax.config.jax_default_matmul_precision))
        return {"a": jnp.array([1.0 if device is first else 1.01])}

    first, real = Device(), jax.devices
    monkeypatch.setattr(checks.jax, "devices", lambda *of: real(*of) if of else [first])
    monkeypatch.setattr(checks, "change", change)
    row = checks.first_update(Context(True, 1.0, {}))
    assert seen == [("accelerator", "highest"), ("cpu", "highest")]
    assert not row["passed"] and row["value"] == pytest.approx(0.01 / 1.01, rel=1e-3)


def test_a_return_below_the_threshold_is_a_failure(monkeypatch):
    def run(config, options):
        options.run_dir.mkdir()
        summary = {"eval_return_mean": 474.9, "status": "finished", "env_steps": config.num_updates}
        summary |= {"compile_seconds": 1.0, "train_seconds": 1.0}
        (options.run_dir / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(checks, "run", run)
    assert not checks.trained(Context(False, 1.0, {}))["passed"]
    assert checks.trained(Context(True, 1.0, {}))["passed"]


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
    wanted = stats.t.interval(0.95, 2, returns.mean(), stats.sem(returns))
    assert learning.interval(returns) == pytest.approx(wanted)


def test_a_learning_row_is_of_the_seeds_asked_for(monkeypatch):
    """Agents added to fill a device count for the throughput, but not for the result."""
    returns = jnp.array([[474.0, 474.0], [475.0, 475.0], [0.0, 0.0]])
    program = type("P", (), {"agents": 3, "bytes_needed": 2**20})
    program.evaluate = lambda *_: (returns, None)
    untils = []

    def train(program, seeds, values, *, updates, until):
        untils.append(until - time.perf_counter())
        return None, updates, 2.0

    monkeypatch.setattr(learning.sweep, "compile_program", lambda *_, **__: program)
    monkeypatch.setattr(learning, "train", train)
    ceilings = {"default": 1e-3, "copy": 1.0}
    row = learning.measure("cartpole_100k", Context(True, 50.0, ceilings))
    assert row["value"] == 474.5 and row["seeds"] == 2 and row["share_reaching"] == 0.5
    assert untils[0] == pytest.approx(40.0, abs=5.0)  # some time remains for evaluation
    config = configs.make(preset="cartpole", total_timesteps=2**14, hidden=(8, 8))
    flops = roofline.work_of(config).flops * row["env_steps"] * 3 / 2.0
    assert row["tflops_per_second"] == pytest.approx(flops / 1e12, rel=0.01)


def test_learning_stops_when_the_time_is_up():
    config = configs.make(preset="none", num_envs=4, num_steps=8, total_timesteps=32 * 50)
    static, floats = sweep.structure(config)
    program = sweep.compile_program(static, None, 2, jax.devices(), episodes=0)
    seeds = jnp.arange(2, dtype=jnp.uint32)
    values = {n: jnp.full(2, x, jnp.float32) for n, x in floats.items()}
    state, updates, _ = learning.train(program, seeds, values, updates=50, until=0.0)
    assert updates == 1 and state.update.tolist() == [1, 1]
    state, updates, _ = learning.train(program, seeds, values, updates=50, until=float("inf"))
    assert updates == 50 and state.update.tolist() == [50, 50]


# --- programs for CUDA, compiled without a device


def lowered(function, *arguments) -> str:
    """The program of a function as compiled for a GPU, as text."""
    return jax.export.export(jax.jit(function), platforms=["cuda"])(*arguments).mlir_module()


# Each differs from another program only in its number of environments or agents, or in precision.
OTHER_SIZES = {
    "cartpole-8192x32",
    "cartpole-32768x32",
    "cartpole-131072x32",
    "cartpole-4x128-a2048",
    "cartpole-8192x32-h256",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in OTHER_SIZES else [])
        for name in (*control.SHARED, *control.OWN)
    ],
)
def test_training_programs_do_not_leave_the_device(name):
    config, agents = control.configuration(name, smoke=False)
    suite = config.env.partition(":")[0]
    if suite in control.PACKAGES:
        pytest.importorskip(control.PACKAGES[suite])
    static, floats = configs.split(config)
    program = build(config)
    state = jax.eval_shape(program.init, jax.random.key(0))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    chunk = make_chunk(step_of(static, program.env))
    if agents > 1:
        many = lambda s: jax.ShapeDtypeStruct((agents, *s.shape), s.dtype)
        state = jax.tree.map(many, state)
        floats = {name: jax.ShapeDtypeStruct((agents,), jnp.float32) for name in floats}
        chunk = jax.vmap(chunk, (0, 0, None))
    text = lowered(chunk, state, floats, count)
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


# --- transferred files and published results


def needs(package: str, found: set[str]) -> set[str]:
    """A package and all its dependencies, from the installed metadata."""
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


# --- the documentation page


def test_until_there_is_a_row_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.markdown(tmp_path) == report.NOTHING + "\n"
    keep(tmp_path, device="cpu")
    assert report.markdown(tmp_path) == report.NOTHING + "\n"


def test_a_row_stands_beside_what_is_published(tmp_path):
    keep(tmp_path, device="NVIDIA H100")
    text = report.markdown(tmp_path)
    assert "training included, NVIDIA H100:" in text and "20,000,000" in text
    assert "12,880,000 (PufferLib 5.0, NVIDIA RTX 5090)" in text and "12.5 %" in text
    report.plot(tmp_path, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_each_section_shows_its_own_columns(tmp_path):
    made = session.Session(tmp_path, True, 60.0, None, None, "")
    made.common = {"device": "x", "started": "2026-11-26T01:02:03"}
    made.keep("checks", "cartpole-trained", [{"value": 3.0, "passed": False, "threshold": 475}])
    made.keep("language", "gpt2-124m", [{"value": 3.0, "generation_share": 0.25}])
    made.keep("peers", "cartpole-2048x32: rejax", [{"value": 3.0, "ratio": 1.5}])
    made.keep("learning", "breakout", [{"value": 3.0, "share_reaching": 0.5, "note": "time"}])
    text = report.markdown(tmp_path)
    for shown in ("| NO |", "| 25 % |", "| 1.50x |", "| 50 % | time |", "2026-11-26"):
        assert shown in text, shown


def keep(folder: Path, device: str) -> None:
    """One row in the format that a session writes."""
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
    assert [task for task, _ in rows[4:]] == ["other: b", "other: a"]  # no longer known


def test_a_peer_that_is_missing_says_what_to_give():
    assert "--peers" in peers.missing("rejax", None, None)
    assert "--purejaxrl" in peers.missing("purejaxrl", ROOT, None)
    assert peers.missing("rejax", ROOT, None) == ""


def contestant(device: str, *rates: float, why: str = ""):
    made = peers.Contestant.__new__(peers.Contestant)
    made.name, made.why = "rejax", why
    made.ready = {"device": device, "compile_seconds": 3.0, "versions": {"jax": "1"}}
    made.rounds = [{"env_steps": r, "seconds": 1.0, "peak_bytes": 2**20} for r in rates]
    return made


def test_a_peers_ratio_is_ours_over_theirs():
    row = peers.row_of(contestant("H100", 10.0, 40.0, 20.0), "H100 x 2", 30.0)
    assert [row[n] for n in ("low", "value", "high", "ratio")] == [10, 20, 40, 1.5]


def test_a_peer_on_another_device_does_not_count():
    row = peers.row_of(contestant("cpu", 10.0), "H100", 30.0)
    assert "peer ran on cpu" in row["why"] and "ratio" not in row


def test_a_peer_that_fails_is_a_failure_in_one_line():
    assert peers.row_of(contestant("H100", why="a\n  b"), "H100", 1.0) == {"why": "error: a b"}
