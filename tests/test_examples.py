"""examples/own_parts.py by the commands of examples/README.md, as they are written."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ppo_jax
from ppo_jax.runs.metrics_log import read_metrics

EXAMPLES = Path(__file__).parent.parent / "examples"
COMMANDS = re.findall(r"^      (python -m .*)$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of examples/, so that what the commands leave is beside it."""
    root = tmp_path_factory.mktemp("examples")
    shutil.copytree(EXAMPLES, root / "examples")
    return root / "examples"


def environment(folder):
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    path = os.pathsep.join([str(EXAMPLES.parent), *sys.path])
    return os.environ | {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "PYTHONPATH": path}


def start(command, folder, *more):
    words = [*shlex.split(command)[1:], *more]
    return subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment(folder), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run(command, folder, *more):
    process = start(command, folder, *more)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def command(word):
    return next(c for c in COMMANDS if word in c)


def numbers(path):
    drop = "steps_per_second"
    return [{k: v for k, v in r.items() if k != drop} for r in read_metrics(path / "metrics.jsonl")]


@pytest.mark.slow
def test_the_commands_of_the_example_run_as_written(folder, monkeypatch):
    """Trained, killed and resumed, evaluated, exported, plotted and swept."""
    train = command("--total-timesteps 40000")
    output = run(train, folder)
    assert "environment steps: 0." in output  # the callback
    whole = folder.parent / "runs" / "own"
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["eval_return_mean"] > 0.9
    kept = json.loads((whole / "config.json").read_text())
    assert kept["config"]["env"] == "own_parts:Corridor" and kept["signature"]
    assert kept["config"]["policy"] == "own_parts:layer_norm"
    assert kept["config"]["algorithm"] == "own_parts"

    killed = folder.parent / "runs" / "killed"
    words = ["--run-dir", str(killed), "--checkpoint-seconds", "0"]
    process = start(train, folder, *words)
    deadline = time.monotonic() + 200
    while not list((killed / "checkpoints").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(f"python -m ppo_jax.train --resume {killed}", folder)
    assert numbers(killed) == numbers(whole)

    longer = run(command("--resume"), folder)
    assert "60,000" in longer or json.loads((whole / "summary.json").read_text())["env_steps"] > 5e4
    assert "own_parts:Corridor: return 0.9" in run(command("ppo_jax.evaluate"), folder)
    run(command("ppo_jax.export"), folder)
    assert (whole / "policy.stablehlo").stat().st_size > 1000
    run(command("ppo_jax.plot"), folder)
    assert (folder.parent / "runs" / "own.png").read_bytes().startswith(b"\x89PNG")
    run(command("ppo_jax.sweep"), folder)
    with (folder.parent / "sweeps" / "own" / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder.parent / "home"))
    agent = ppo_jax.load(whole)
    assert int(agent(np.eye(8, dtype=np.float32)[3])) == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="needs the extra onnx")
def test_the_example_leaves_for_onnx(folder):
    path = folder.parent / "runs" / "onnx"
    run(command("--total-timesteps 40000"), folder, "--run-dir", str(path))
    run(f"python -m ppo_jax.export {path} --format onnx", folder)
    assert (path / "policy.onnx").stat().st_size > 1000


def test_the_example_trains_from_python(tmp_path, monkeypatch):
    """Objects in place of names, two callbacks, an early end."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import own_parts

    assert len(COMMANDS) == 6
    config = ppo_jax.config.make(
        env=own_parts.Corridor(5), policy=own_parts.layer_norm, algorithm=own_parts, hidden=(16,),
        num_envs=8, num_steps=32, total_timesteps=25_600, learning_rate=1e-2, anneal_timesteps=1e6,
    )  # fmt: skip
    result = ppo_jax.run(
        config, tmp_path / "a", env=own_parts.Corridor(5), callbacks=[own_parts.report],
        eval_every=5, eval_episodes=8, stop_at=0.95,
    )  # fmt: skip
    assert result.summary["ended_early"] == "reached 0.95"
    assert 0 < result.summary["env_steps"] < 25_600
    found = ppo_jax.evaluate(result.path, episodes=4, env=own_parts.Corridor(5))
    assert float(found.episode_return.mean()) > 0.95
