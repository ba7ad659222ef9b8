"""Sweeps on clusters (cluster, worker, on_ray, on_slurm).

The results equal those of a local sweep, whatever happens to the workers; invalid options are
refused. Tests that start processes have a time limit, after which all of them are killed, and check
that none is left.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import jax
import numpy as np
import pytest

import fake_slurm
from ppo_jax import config as configs
from ppo_jax.cli import sweep as command
from ppo_jax.config import ConfigError
from ppo_jax.runs.job import RunFailed
from ppo_jax.runs.restore import load
from ppo_jax.runs.signals import Signals
from ppo_jax.sweep import cluster, figures, on_ray, on_slurm, worker
from ppo_jax.sweep.cluster import WorkerOptions
from ppo_jax.sweep.keep import candidates
from ppo_jax.sweep.plan import Plan
from ppo_jax.sweep.store import Spec, read_sessions
from ppo_jax.sweep.worker import Arrays, Failed, Narrower, Refused, Trained

# The program of tests/test_sweep_session.py, so that it is compiled once for both files.
FLAGS = [
    "--preset", "none", "--num-envs", "4", "--num-steps", "32", "--total-timesteps", "640",
    "--hidden", "16", "16", "--vary", "learning_rate=1e-3,1e-2", "--seeds", "2",
    "--agents-per-device", "2", "--eval-episodes", "4",
]  # fmt: skip
TABLES = ("results.csv", "agents.csv", "table.csv", "table.md", "plan.json")
# For tests that start processes, on two devices: two rounds of two chunks.
LONGER = [*FLAGS, "--seeds", "4"]
SECONDS = 240


def tables(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweeps") / "local"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *_: {})
        assert command.run_command([*FLAGS, "--run-dir", str(path)]) == 0
    return path


class Inline:
    """Workers in this process; some outcomes are replaced.

    Args:
        instead: function (order, number of its earlier outcomes) -> Outcome, or None to train it.
    """

    name = "workers in a test"

    def __init__(self, instead=lambda order, before: None):
        self.instead, self.waiting, self.before, self.cancelled = instead, [], {}, 0

    def submit(self, orders, folder):
        self.waiting += orders

    def ended(self):
        if not self.waiting:
            return []
        order = self.waiting.pop()  # in reverse order
        before = self.before.setdefault(order.number, 0)
        self.before[order.number] += 1
        outcome = self.instead(order, before)
        return [(order.number, worker.work(order) if outcome is None else outcome)]

    def cancel(self):
        self.waiting.clear()
        self.cancelled += 1


@pytest.fixture
def inline(monkeypatch):
    """Make --cluster ray use workers in this process."""

    def reach(instead=lambda order, before: None):
        launcher = Inline(instead)
        opened = lambda options, place: contextlib.nullcontext(launcher)
        monkeypatch.setattr(on_ray, "check", lambda options: None)
        monkeypatch.setattr(on_ray, "opened", opened)
        monkeypatch.setattr(figures, "draw", lambda *_: {})  # saves seconds; not tested here
        return launcher

    return reach


def sweep(path: Path, *more: str) -> int:
    return command.run_command([*FLAGS, "--run-dir", str(path), "--cluster", "ray", *more])


def test_the_table_of_a_cluster_is_the_local_one(local, tmp_path, inline, capsys):
    """The rounds are returned in a different order, and a worker is lost twice; the stored agents
    are the same as well."""
    died = lambda order, before: Failed("killed") if order.number == 1 and before < 2 else None
    launcher, path = inline(died), tmp_path / "a"
    assert sweep(path) == 0
    assert launcher.before == {0: 1, 1: 3}
    assert "the round of agents 2 to 3 failed (killed): retry 2 of 2" in capsys.readouterr().out
    assert tables(path) == tables(local)
    kept = sorted(p.name for p in (local / "agents").iterdir())
    assert sorted(p.name for p in (path / "agents").iterdir()) == kept
    for name in kept:
        states = [worker.leaves_of(load(p / "agents" / name)[2]) for p in (local, path)]
        for a, b in zip(*states, strict=True):
            np.testing.assert_array_equal(a, b)
    (session,) = read_sessions(path)
    assert (session["cluster"], session["device"]) == ("ray", "cpu")
    last = json.loads((path / "summary.json").read_text())["last_session"]
    assert (last["cluster"], last["env_steps"]) == ("ray", 4 * 640)


def test_what_fails_too_often_leaves_a_sweep_that_can_be_resumed(local, tmp_path, inline):
    """A signal has the same effect; the sweep may continue without the cluster."""
    launcher = inline(lambda order, before: Failed("killed") if order.number == 1 else None)
    path = tmp_path / "a"
    says = "2 agents could not be trained: 1 round failed 2 times .last: killed.; finished agents"
    with pytest.raises(RunFailed, match=says):
        sweep(path, "--retries", "1")
    assert launcher.before[1] == 2 and launcher.cancelled
    assert [p.name for p in (path / "chunks").glob("*.json")] == ["00000.json"]

    def stop(order, before):
        os.kill(os.getpid(), signal.SIGTERM)
        return Failed("too late")

    launcher = inline(stop)
    assert command.run_command(["--resume", str(path), "--cluster", "ray"]) == 143
    assert launcher.before == {0: 1} and launcher.cancelled
    assert command.run_command(["--resume", str(path)]) == 0
    assert tables(path) == tables(local)


def dispatch(instead, width=2, **options):
    """A Dispatch of four agents whose rounds are not trained, and the plans that it wrote."""
    plans, spec = [], Spec((), (configs.make(env="CartPole-v1"),), (0, 1, 2, 3), 0, 1)
    options = WorkerOptions(cluster="ray", **options)
    place = cluster.place_of(options)

    def trained(order, before):
        chunks = [Arrays(c, {}, np.zeros(()), np.zeros(()), {}) for c in order.chunks]
        return instead(order, before) or Trained(chunks, 1, 0.5, "cpu")

    made = cluster.Dispatch(
        spec,
        cluster.Cluster(options, Inline(trained), place),
        width=width,
        plan=Plan(on_change=lambda chunks: plans.append([*chunks])),
        keep="none",
        folder=Path("folder"),
        signals=Signals(),
    )
    return made, plans


def test_workers_without_memory_get_narrower_chunks():
    """Only the agents of the round that did not fit are divided again."""
    narrow = lambda order, before: (
        Narrower(1, "no room") if order.chunks[0].agents == (0, 1) else None
    )
    made, plans = dispatch(narrow)
    assert sorted(f.chunk.agents for f in made.run()) == [(0,), (1,), (2, 3)]
    assert [(c.number, c.agents, c.width) for c in plans[-1]] == [
        (1, (2, 3), 2), (2, (0,), 1), (3, (1,), 1),
    ]  # fmt: skip
    assert (made.programs, made.compile_seconds, made.worked_on) == (3, 1.5, ["cpu"])


def test_the_width_is_that_of_the_local_sweep(monkeypatch):
    """On GPUs, where all agents are trained at the same time, each worker gets an equal share."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    none = lambda order, before: None
    widths = lambda *given, **options: dispatch(none, *given, **options)[0]._width(10)
    assert widths(None) == widths(None, workers=5) == 3
    assert widths(100) == 5 and widths(2) == 2
    assert widths(None, gpus_per_worker=1) == 10
    assert widths(None, gpus_per_worker=1, workers=3) == 4


def test_a_worker_says_what_it_cannot_do(monkeypatch):
    """By the compiler's estimate, or when the device runs out; a single agent is refused."""
    orders = []
    made, _ = dispatch(lambda order, before: orders.append(order) or Refused("enough"))
    with pytest.raises(ConfigError, match="enough"):
        next(made.run())
    (order,) = orders
    assert order.chunks[0].width == 2 and order.share == 4
    with monkeypatch.context() as patch:
        patch.setattr(worker.Schedule, "fitting", lambda *_: type("Program", (), {"width": 1}))
        assert worker.work(order)[0] == 1

    def never(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(worker.Schedule, "round", never)
    fits = type("Program", (), {"width": 2})
    monkeypatch.setattr(worker.Schedule, "fitting", lambda *_: fits)
    assert worker.work(order) == Narrower(1, "RESOURCE_EXHAUSTED: Out of memory")
    fits.width = 1
    one = order._replace(chunks=(order.chunks[0]._replace(width=1),))
    assert "one agent alone does not fit" in worker.work(one).reason
    other = order.place._replace(versions=order.place.versions | {"jax": "0.1"})
    assert "has jax" in worker.work(order._replace(place=other)).reason
    many = order._replace(place=order.place._replace(devices=7))
    assert "1 devices instead of 7; see --cpus-per-worker" in worker.work(many).reason
    gpus = order._replace(place=order.place._replace(gpus=1, devices=1))
    assert "finds no GPU" in worker.work(gpus).reason
    assert worker.work(order._replace(chunks=())) == Failed("IndexError: tuple index out of range")


def test_the_candidates_of_a_chunk_are_all_that_may_be_kept():
    scores = np.array([1.0, 3.0, 3.0, np.nan, np.nan, 2.0])
    assert candidates([0, 0, 0, 1, 1, 2], scores, "best") == [1, 3, 5]
    assert candidates([0, 0], scores[:2], "all") == [0, 1]
    assert candidates([0, 0], scores[:2], "none") == []


def test_a_state_goes_through_its_leaves():
    state = {"key": jax.random.key(3), "x": jax.numpy.arange(3)}
    leaves = worker.leaves_of(state)
    assert all(type(x) is np.ndarray for x in leaves)
    back = worker.state_of(jax.eval_shape(lambda: state), leaves)
    assert jax.random.bits(back["key"]) == jax.random.bits(state["key"])


def test_numbers_of_a_plan_are_never_given_again():
    plans = []
    plan = Plan(on_change=lambda chunks: plans.append([c.number for c in chunks]))
    first, second = plan.add(0, range(4), 2)
    plan.done.add(second.number)
    assert [c.agents for c in plan.replace([first], 1)] == [(0,), (1,)]
    assert plans == [[0, 1], [1, 2, 3]] and [c.number for c in plan.left(0)] == [2, 3]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--workers", "2"], "--workers requires --cluster ray or slurm"),
        (["--slurm", "mem=8G", "--cluster", "ray"], "--slurm requires --cluster slurm"),
        (["--cluster", "slurm", "--ray-address", "auto"], "--ray-address requires --cluster ray"),
        (["--slurm-local"], "--slurm-local requires --cluster slurm"),
        (["--cluster", "ray", "--retries", "-1"], "retries is -1"),
        (["--cluster", "ray"], r"needs Ray: .*pip install -e .*\[ray\]"),
        (["--cluster", "slurm"], r"needs submitit: .*pip install -e .*\[slurm\]"),
    ],
)
def test_what_a_cluster_needs_is_said_before_anything_is_written(tmp_path, monkeypatch, more, says):
    find = importlib.util.find_spec
    missing = lambda name, *rest: None if name in ("ray", "submitit") else find(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    path = tmp_path / "new"
    with pytest.raises(ConfigError, match=says):
        command.run_command([*FLAGS, "--run-dir", str(path), *more])
    assert not path.exists()


def test_slurm_has_to_be_there(monkeypatch, tmp_path):
    monkeypatch.setattr(on_slurm.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on the PATH; .* --slurm-local"):
        on_slurm.check(WorkerOptions(cluster="slurm"))
    on_slurm.check(WorkerOptions(cluster="slurm", slurm_local=True))


def test_the_command_that_goes_on_trains_where_it_was_trained():
    def said(**options):
        made = WorkerOptions(**options)
        return cluster.again(Path("a b"), cluster.Cluster(made, None, None))

    assert cluster.again(Path("a b"), None) == "python -m ppo_jax sweep --resume 'a b'"
    assert said(cluster="ray", workers=2).endswith("'a b' --cluster ray --workers 2")
    slurm = said(cluster="slurm", slurm=("mem=8G", "comment=x y"), slurm_local=True)
    assert slurm.endswith("--cluster slurm --slurm mem=8G --slurm 'comment=x y' --slurm-local")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), ({}, 60)),
        (("partition=gpu", "--mem_per_cpu=2G"), ({"partition": "gpu", "mem-per-cpu": "2G"}, 60)),
        (("time=90",), ({}, 90)),
        (("time=1:30",), ({}, 2)),
        (("time=2:00:00",), ({}, 120)),
        (("time=1-12",), ({}, 36 * 60)),
        (("time=1-0:30",), ({}, 24 * 60 + 30)),
        (("comment=a=b",), ({"comment": "a=b"}, 60)),
    ],
)
def test_options_of_sbatch(words, found):
    assert on_slurm.parse(words) == found


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("partition",), "give name=value"),
        (("mem=",), "give name=value"),
        (("mem=8G\nrm",), "give name=value"),
        (("a b=c",), "give name=value"),
        (("time=soon",), "give minutes, H:MM:SS or D-HH:MM:SS"),
        (("time=0",), "give minutes"),
        (("array=0-5",), "the sweep sets array itself; give --workers"),
        (("cpus_per_task=4",), "give --cpus-per-worker"),
        (("output=x",), "the sweep sets output itself"),
        (("mem=1G", "mem=2G"), "gives mem twice"),
    ],
)
def test_what_sbatch_does_not_take_is_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        on_slurm.parse(words)


def test_a_worker_has_the_devices_that_this_machine_has(monkeypatch):
    """Two devices for one core if this machine has several: one device is another program."""
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("XLA_FLAGS", "")
    found = {}
    for here in (1, 8):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, here=here: range(here))
        for cores in (None, 1, 4):
            place = cluster.place_of(WorkerOptions(cpus_per_worker=cores))
            found[here, cores] = (place.cores, place.devices)
    assert found == {
        (1, None): (1, 1), (1, 1): (1, 1), (1, 4): (4, 4),
        (8, None): (8, 8), (8, 1): (1, 2), (8, 4): (4, 4),
    }  # fmt: skip
    assert cluster.place_of(WorkerOptions(gpus_per_worker=3)).devices == 3
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=5")
    assert cluster.place_of(WorkerOptions()).devices == 5


def test_an_object_from_python_cannot_be_sent():
    config = configs.make(env="CartPole-v1", policy="<Mine given from Python, 1>")
    spec = Spec((), (config,), (0,), 0, 1)
    with pytest.raises(ConfigError, match="Mine.* cannot be sent to another machine"):
        cluster.check_names(spec)


# ---- processes ----

needs_ray, needs_submitit = (
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")
    for name in ("ray", "submitit")
)


class Started:
    """The command in separate processes, which are identified by an environment variable."""

    def __init__(self, *words: str, log: Path, **environment: str) -> None:
        self.mark, self.log = f"PPO_JAX_TEST_MARK={uuid.uuid4().hex}", log
        name, _, value = self.mark.partition("=")
        left_out = ("JAX_NUM_CPU_DEVICES", "PYTEST_CURRENT_TEST")
        known = {n: v for n, v in os.environ.items() if n not in left_out}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ppo_jax.sweep", *words],
            env=known | {"PYTHONPATH": os.pathsep.join(sys.path), name: value} | environment,
            stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def all(self) -> dict[int, str]:
        """Process -> command, for all processes started by this one."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = words.decode(errors="replace")
        return found

    def find(self, text: str, beside: str = "\n") -> int:
        """Wait for a process whose command contains a text."""
        while self.process.poll() is None:
            for pid, words in self.all().items():
                if text in words and beside not in words:
                    return pid
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def __enter__(self) -> "Started":
        signal.signal(signal.SIGALRM, self._out_of_time)
        signal.alarm(SECONDS)
        return self

    def _out_of_time(self, *_: object) -> None:
        raise AssertionError(f"not done in {SECONDS} s: {self.log.read_text()}")

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        for _ in range(50):  # processes that were just asked to end
            if self.process.poll() is not None and not self.all():
                break
            time.sleep(0.1)
        left = self.all()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    with Started(*LONGER, "--run-dir", str(folder / "a"), log=folder / "log") as run:
        assert run.wait() == 0, run.log.read_text()
    return folder / "a"


def addresses() -> set[str]:
    """Listening sockets of this machine: IPv4 and IPv6, in the kernel's notation."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {words[1] for words in lines if words[3] == "0A"}


LOOPBACK = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")


@pytest.mark.slow
@needs_ray
def test_a_worker_of_ray_that_is_killed_changes_nothing(reference, tmp_path):
    before, folders = addresses(), {*Path("/tmp").glob("ppo_jax-ray-*")}
    words = [*LONGER, "--run-dir", str(tmp_path / "a"), "--cluster", "ray"]
    with Started(*words, log=tmp_path / "log", TMPDIR=str(tmp_path)) as run:
        pid = run.find("ray::ppo_jax.sweep")
        beyond = [a for a in addresses() - before if not a.startswith(LOOPBACK)]
        assert not beyond, f"something listens beyond this machine: {beyond}"
        os.kill(pid, signal.SIGKILL)
        assert run.wait() == 0, run.log.read_text()
    assert "failed (WorkerCrashedError: The worker died" in run.log.read_text()
    assert tables(tmp_path / "a") == tables(reference)
    assert {*Path("/tmp").glob("ppo_jax-ray-*")} <= folders


@pytest.mark.slow
@needs_ray
def test_a_signal_ends_the_workers_of_ray(reference, tmp_path):
    path = tmp_path / "a"
    words = [*LONGER, "--run-dir", str(path), "--cluster", "ray"]
    with Started(*words, log=tmp_path / "log", TMPDIR=str(tmp_path)) as run:
        run.find("ray::ppo_jax.sweep")
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.wait() == 143, run.log.read_text()
    assert "ppo_jax sweep --resume" in run.log.read_text()
    with Started("--resume", str(path), log=tmp_path / "log") as run:
        assert run.wait() == 0, run.log.read_text()
    assert tables(path) == tables(reference)


@pytest.mark.slow
@needs_ray
def test_an_address_without_ray_is_one_line(tmp_path):
    words = [*LONGER, "--run-dir", str(tmp_path / "a"), "--cluster", "ray"]
    address = ("--ray-address", "127.0.0.1:9")
    with Started(*words, *address, log=tmp_path / "log") as run:
        assert run.wait() == 2
    last = run.log.read_text().splitlines()[-1]
    assert last.startswith("error: cannot use Ray at 127.0.0.1:9"), run.log.read_text()
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@needs_submitit
def test_a_rehearsed_job_that_is_killed_changes_nothing(reference, tmp_path):
    path = tmp_path / "a"
    words = [*LONGER, "--run-dir", str(path), "--cluster", "slurm", "--slurm-local"]
    with Started(*words, log=tmp_path / "log") as run:
        os.kill(run.find("submitit.core._submit"), signal.SIGKILL)
        assert run.wait() == 0, run.log.read_text()
    assert "ended without a result (killed)" in run.log.read_text()
    assert tables(path) == tables(reference)
    # The failed job's log is kept; a new session does not need it.
    (folder,) = (path / "slurm").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700 and [*folder.glob("*_log.err")]
    shutil.rmtree(path / "chunks")
    with Started("--resume", str(path), *words[-3:], log=tmp_path / "log") as run:
        assert run.wait() == 0, run.log.read_text()
    assert not (path / "slurm").exists() and tables(path) == tables(reference)


@pytest.mark.slow
@needs_submitit
def test_jobs_of_slurm(reference, tmp_path):
    """An array of two jobs; one is killed, which SLURM reports as its state."""
    path, there = tmp_path / "a", fake_slurm.install(tmp_path / "slurm")
    words = [*LONGER, "--run-dir", str(path), "--cluster", "slurm", "--slurm", "partition=cpu"]
    with Started(*words, log=tmp_path / "log", **there) as run:
        os.kill(run.find("submitit.core._submit", beside="srun"), signal.SIGKILL)
        assert run.wait() == 0, run.log.read_text()
    assert "ended without a result (failed)" in run.log.read_text()
    assert tables(path) == tables(reference)
    script = (tmp_path / "slurm/jobs/100.sh").read_text()
    assert "#SBATCH --array=0-1%2\n" in script and "#SBATCH --partition=cpu\n" in script
    with Started("--resume", str(path), *words[-4:-1], "time=soon", log=tmp_path / "log") as run:
        assert run.wait() == 2


@pytest.mark.slow
@needs_submitit
def test_a_signal_cancels_the_jobs_of_slurm(reference, tmp_path):
    path, there = tmp_path / "a", fake_slurm.install(tmp_path / "slurm")
    words = [*LONGER, "--run-dir", str(path), "--cluster", "slurm", "--workers", "1"]
    with Started(*words, log=tmp_path / "log", **there) as run:
        run.find("submitit.core._submit", beside="srun")
        os.kill(run.process.pid, signal.SIGINT)
        assert run.wait() == 130, run.log.read_text()
    states = [json.loads(p.read_text()) for p in (tmp_path / "slurm/jobs").glob("*_?.json")]
    assert [s.get("cancelled") or s.get("code") for s in states] == [True, True] or all(
        s.get("cancelled") or "code" in s for s in states
    )
    with Started("--resume", str(path), log=tmp_path / "log") as run:
        assert run.wait() == 0, run.log.read_text()
    assert tables(path) == tables(reference)
