"""Two processes on this machine that train together, and errors that end both.

Each test has a time limit, after which all processes are killed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ppo_jax.runs.checkpoint import Checkpoints
from ppo_jax.runs.cluster.group import digest
from ppo_jax.runs.restore import load

HEARTBEAT = 8
LIMIT = 150.0
WORKER = Path(__file__).with_name("cluster_worker.py")
pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Processes:
    """Start the processes of one run, and kill those that remain when the block ends.

    Args:
        command: command of each process, without the flags that define the group.
        ranks: numbers of the processes to start, out of two.
    """

    def __init__(self, command, folder, ranks=(0, 1)):
        self.folder, self.started = folder, time.monotonic()
        where = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2"]
        where += ["--heartbeat", str(HEARTBEAT)]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        env["PYTHONPATH"] = str(WORKER.parent.parent)
        self.all, self.errors = {}, {}
        for rank in ranks:
            self.errors[rank] = (folder / f"stderr-{rank}-{time.monotonic_ns()}").open("w+")
            self.all[rank] = subprocess.Popen(
                [sys.executable, *map(str, command), *where, "--process-id", str(rank)],
                env=env, stdout=subprocess.DEVNULL, stderr=self.errors[rank],
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.all.values():
            process.kill()
            process.wait()
        for file in self.errors.values():
            file.close()

    def saved(self):
        """Wait for the first checkpoint."""
        made = self.folder / "run" / "checkpoints"
        while not [*made.glob("*.json")]:
            assert time.monotonic() - self.started < LIMIT, self.said()
            assert all(p.poll() is None for p in self.all.values()), self.said()
            time.sleep(0.05)

    def ended(self, within, *, but=()):
        """rank -> exit code of all processes except the excluded ones, which must end within a time
        limit."""
        until = time.monotonic() + within
        left = {r: p for r, p in self.all.items() if r not in but}
        while any(p.poll() is None for p in left.values()):
            assert time.monotonic() < until, self.said()
            time.sleep(0.05)
        return {rank: process.returncode for rank, process in left.items()}

    def said(self, rank=None):
        """The standard error of one process, or of all."""
        texts = {r: Path(file.name).read_text() for r, file in self.errors.items()}
        return texts if rank is None else texts[rank]


def workers(folder, updates=10**7, ranks=(0, 1)):
    """The command of the small job in `cluster_worker.py`."""
    return Processes([WORKER, folder, updates], folder, ranks)


def last_line(text):
    """The last line of a process's standard error, which must be its only line."""
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, text
    assert text.rstrip().endswith(lines[0]), text
    return lines[0]


def test_two_processes_train_as_one_process_with_two_devices(tmp_path):
    """Runs agree bit for bit, and their checkpoints can be used with any number of devices."""
    flags = "--env CartPole-v1 --num-envs 4 --num-steps 16 --total-timesteps 384 --hidden 8"
    flags += " --epochs 2 --eval-episodes 4 --eval-every 3 --checkpoint-seconds 0"
    command = ["-m", "ppo_jax.train", *flags.split(), "--run-dir"]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    alone = subprocess.Popen(
        [sys.executable, *command, tmp_path / "one", "--devices", "2"],
        env=env, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with Processes([*command, tmp_path / "two"], tmp_path) as both:
            assert both.ended(LIMIT) == {0: 0, 1: 0}, both.said()
        assert alone.wait(LIMIT) == 0
    finally:
        alone.kill()
    (_, _, one), (_, _, two) = load(tmp_path / "one"), load(tmp_path / "two")
    assert int(two.update) == 6
    assert digest(one) == digest(two)
    rows = [[*map(json.loads, (tmp_path / n / "metrics.jsonl").open())] for n in ("one", "two")]
    for row in rows[0] + rows[1]:
        row.pop("steps_per_second")
    assert rows[0] == rows[1]
    assert {"eval_return_mean"} <= rows[1][2].keys()
    summaries = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "two")]
    for name in ("status", "updates", "eval_return_mean", "device"):
        assert summaries[0][name] == summaries[1][name]
    assert jax.device_count() == 1  # of this process, which restored both


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    with workers(folder, updates=400) as both:
        assert both.ended(LIMIT) == {0: 0, 1: 0}, both.said()
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_all_and_the_run_goes_on_exactly(tmp_path, rank, whole):
    with workers(tmp_path, updates=400) as both:
        (tmp_path / "slow").touch()
        both.saved()
        both.all[rank].kill()
        assert both.ended(2 * HEARTBEAT, but=[rank]) == {1 - rank: 1}
        said = last_line(both.said(1 - rank))
    assert f"process {rank}" in said
    assert "run" in said
    (tmp_path / "slow").unlink()
    assert not (tmp_path / "result.json").exists()
    with workers(tmp_path, updates=400) as both:
        assert both.ended(LIMIT) == {0: 0, 1: 0}, both.said()
    assert (tmp_path / "result.json").read_text() == (whole / "result.json").read_text()
    assert last_digest(tmp_path) == last_digest(whole)


def last_digest(folder):
    """The last state of a run of the small job."""
    path = folder / "run" / "checkpoints"
    shapes = {"mean": np.zeros((), "f4"), "part": np.zeros((2, 4), "f4"), "key": jax.random.key(0)}
    step, state = Checkpoints(path, {"job": "counting"}).restore(shapes)
    return step, digest(state)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_process_ends_the_other(tmp_path, rank):
    with workers(tmp_path) as both:
        both.saved()
        both.all[rank].send_signal(signal.SIGSTOP)
        assert both.ended(2 * HEARTBEAT, but=[rank]) == {1 - rank: 1}
        assert f"process {rank} has" in last_line(both.said(1 - rank))


@pytest.mark.parametrize(
    "file, said",
    [
        ("hang-1", "process 1 has been in a Python function that its program calls"),
        ("callback", "process 0 has been in a callback"),
    ],
)
def test_a_process_that_hangs_in_python_ends_all(tmp_path, file, said):
    with workers(tmp_path) as both:
        both.saved()
        (tmp_path / file).touch()
        assert both.ended(2 * HEARTBEAT) == {0: 1, 1: 1}
        assert all(said in last_line(both.said(rank)) for rank in (0, 1))


def test_an_error_of_one_ends_all_and_the_state_is_saved(tmp_path):
    with workers(tmp_path) as both:
        both.saved()
        (tmp_path / "raise").touch()
        assert both.ended(2 * HEARTBEAT) == {0: 1, 1: 1}
        assert "ValueError: no more" in last_line(both.said(0))
        assert "process 0: ValueError: no more" in last_line(both.said(1))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert last_digest(tmp_path)[0] == summary["updates"] == int((tmp_path / "at").read_text())


def test_a_process_that_lets_no_thread_run_ends_all(tmp_path):
    with workers(tmp_path) as both:
        both.saved()
        (tmp_path / "regex-1").touch()
        assert both.ended(2 * HEARTBEAT) == {0: 1, 1: 1}
        assert "process 1 has shown no sign of life" in last_line(both.said(0))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_other_never_starts_ends(tmp_path, rank):
    with workers(tmp_path, ranks=[rank]) as alone:
        assert alone.ended(2 * HEARTBEAT + 3) == {rank: 1}  # plus the time for importing JAX
        assert f"process {rank} of 2 waited 10 s" in last_line(alone.said(rank))


@pytest.mark.parametrize("rank, number", [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_a_signal_to_one_ends_all_with_one_state_saved(tmp_path, rank, number):
    with workers(tmp_path) as both:
        both.saved()
        both.all[rank].send_signal(number)
        assert both.ended(2 * HEARTBEAT) == {0: 128 + number, 1: 128 + number}, both.said()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == f"stopped by {number.name}"
    assert last_digest(tmp_path)[0] == summary["updates"] == int((tmp_path / "at").read_text())


def test_what_the_processes_were_given_must_agree(tmp_path):
    """Processes with different options are refused before anything is written, with both values."""
    flags = "-m ppo_jax.train --env CartPole-v1 --num-envs 4 --num-steps 16 --total-timesteps 384"
    command = [*flags.split(), "--run-dir", tmp_path / "run"]
    first = Processes([*command, "--seed", "1"], tmp_path, ranks=[0])
    where = first.all[0].args[-8:]
    with first, (tmp_path / "other").open("w+") as said:
        other = subprocess.Popen(
            [sys.executable, *map(str, command), "--seed", "2", *where[:-1], "1"],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
        try:
            assert other.wait(LIMIT) == 2
        finally:
            other.kill()
        assert first.ended(2 * HEARTBEAT) == {0: 2}
        assert "seed is 1 in process 0 and 2 in process 1" in last_line(first.said(0))
    assert "seed is 1 in process 0 and 2 in process 1" in (tmp_path / "other").read_text()
    assert not (tmp_path / "run").exists()
