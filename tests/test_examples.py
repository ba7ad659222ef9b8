"""The commands of examples/README.md, run as they are written."""

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

import documents
import ppo_jax
from benchmarks import table
from ppo_jax.runs.metrics_log import read_metrics

EXAMPLES = Path(__file__).parent.parent / "examples"
README = EXAMPLES / "README.md"
HOUR = "The first hour"
OWN = "An environment, a network, an algorithm and a callback"
GYMNASIUM = "A Gymnasium environment"
PONG = "Watch an agent play Pong"
BRAX = "A physics task in Brax"
LANGUAGE = "A language model and a rule"
OPTUNA = "A hyperparameter search with Optuna"
ATARI = "Atari Pong from the memory of the console"
KUHN = "Self-play in Kuhn poker"
CONNECT = "Self-play in Connect Four"


def sections():
    """Title -> the commands of the section that begin with `python`; "" -> those before all."""
    parts = re.split(r"^## (.+)\n", README.read_text(), flags=re.M)
    texts = {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))
    return {t: re.findall(r"^    (python .+)$", text, re.M) for t, text in texts.items()}


SECTIONS = sections()
COMMANDS = SECTIONS[OWN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of examples/, in which the commands write their files."""
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
    """Training, kill and resume, evaluation, export, plot and sweep."""
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
    """Objects instead of names, two callbacks, and an early end."""
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


def needs(module):
    """Skip a test where a module that its example needs is not installed."""
    found = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not found, reason=f"needs {module}, which is not installed")


def summary(folder, name):
    return json.loads((folder.parent / "runs" / name / "summary.json").read_text())


def training_return(folder, name):
    """The mean return over the whole training; the last return depends on rounding."""
    rows = read_metrics(folder.parent / "runs" / name / "metrics.jsonl")
    return np.nanmean([r["episode_return"] for r in rows if r["episode_return"] is not None])


def test_every_section_has_a_test():
    tested = {"", HOUR, OWN, GYMNASIUM, PONG, BRAX, LANGUAGE, OPTUNA, KUHN, CONNECT, ATARI}
    assert {*SECTIONS} == tested and all(SECTIONS.values())


def test_the_links_of_the_examples_lead_somewhere():
    for link in documents.links(README):
        place, _, heading = link.partition("#")
        target = EXAMPLES / place if place else README
        assert target.exists(), link
        assert not heading or heading in documents.anchors(target), link


def test_the_script_of_the_first_hour_has_the_commands_of_the_page():
    script = (EXAMPLES / "first_hour.sh").read_text()
    timed = re.findall(r"^timed (python .+)$", script, re.M)
    assert timed == SECTIONS[HOUR]


def test_the_first_hour_counts_what_is_typed():
    text = README.read_text().partition(f"## {HOUR}")[2].partition("\n## ")[0]
    commands = re.findall(r"^    \S.*$", text, re.M)
    lines = [x for x in (EXAMPLES / "delivery.py").read_text().splitlines() if x.strip()]
    assert f"{len(commands)} commands, and the {len(lines)} lines of" in text
    read = [x for x in text.splitlines() if x.strip() and not x.startswith("    ")]
    assert f"read the {len(read)} lines" in text
    measured = {
        row["what"]: int(row["value"]) for row in table.read(table.RESULTS / "first_hour.csv")
    }
    assert measured["commands that are typed"] == len(commands)
    assert measured["delivery.py, which is typed"] == len(lines)
    assert measured["README.md, which is read"] == len(read)
    timed = [w for w in measured if re.match(r"git|python", w)]
    assert len(timed) == len(commands) - 3  # cd and the activation of the environment take no time
    minutes = [round(measured[w] / 60) for w in ("all commands", "python3 run.py train")]
    assert "{} minutes, {} of them for the first".format(*minutes) in " ".join(text.split())


def test_the_environments_of_the_examples_pass_their_check(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import delivery
    import greenhouse

    from ppo_jax.envs import check_env

    for env in (delivery.Delivery(), greenhouse.Greenhouse):
        assert check_env(env).problems == []


def test_the_rule_of_the_language_example():
    """Loaded by its path: `language` is also the name of a module of the tests."""
    path = EXAMPLES / "language" / "answers.py"
    spec = importlib.util.spec_from_file_location("answers", path)
    answers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(answers)
    found = answers.score(["3+4="] * 4, ["7", "5", "=", ""])
    assert found == [1.0, 0.4, 0.0, 0.0]


@pytest.mark.slow
def test_the_first_hour_runs_as_written(folder):
    for line in (*SECTIONS[""], *SECTIONS[HOUR]):
        run(line, folder)
    assert summary(folder, "first")["eval_return_mean"] >= 475
    assert training_return(folder, "large") < training_return(folder, "first")
    assert summary(folder, "delivery")["eval_return_mean"] > 0.85
    assert (folder.parent / "runs" / "first.gif").stat().st_size > 1000
    assert (folder.parent / "sweeps" / "first" / "report.html").exists()


@pytest.mark.slow
@needs("gymnasium")
def test_the_gymnasium_example_runs_as_written(folder):
    outputs = [run(line, folder) for line in SECTIONS[GYMNASIUM]]
    assert "no problems" in outputs[0]
    assert summary(folder, "greenhouse")["eval_return_mean"] > 25
    assert list((folder.parent / "runs" / "greenhouse" / "checkpoints").iterdir())
    assert float(re.search(r"return of one episode: ([\d.]+)", outputs[-1])[1]) > 20


@pytest.mark.slow
def test_pong_is_trained_and_watched(folder):
    """With fewer steps than the page has, which take minutes."""
    (line,) = SECTIONS[PONG]
    assert "8 greedy episodes" in run(line, folder, "--total-timesteps", "20000")
    assert (folder.parent / "pong.gif").stat().st_size > 1000
    config = json.loads((folder.parent / "runs/watch_pong/config.json").read_text())
    before = (folder.parent / "runs/watch_pong/metrics.jsonl").read_bytes()
    run(line, folder)  # only plays
    assert (folder.parent / "runs/watch_pong/metrics.jsonl").read_bytes() == before
    assert config["config"]["total_timesteps"] == 20000


@pytest.mark.slow
@needs("brax")
def test_the_brax_example_runs_as_written(folder):
    for line in SECTIONS[BRAX]:
        run(line, folder)
    assert summary(folder, "inverted_pendulum")["eval_return_mean"] > 800


@pytest.mark.slow
@needs("tokenizers")
def test_the_language_example_runs_as_written(folder):
    """From random weights to sums, by the rule alone."""
    outputs = [run(line, folder) for line in SECTIONS[LANGUAGE]]
    assert "3+4=7" in outputs[-1] and "2+2=4" in outputs[-1]
    rows = [*read_metrics(folder.parent / "runs" / "sums" / "metrics.jsonl")]
    assert rows[-1]["score"] > 0.8 > 0.3 > rows[0]["score"]


@needs("ale_py")
def test_the_memory_of_the_console_and_its_changes(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import atari_ram

    game = atari_ram.make_pong()
    observations, memories = [game.reset(seed=0)[0]], [game.unwrapped.ale.getRAM()]
    for action in (0, 2, 3) * 20:
        observations.append(game.step(action)[0])
        memories.append(game.unwrapped.ale.getRAM())
    observations, memories = np.array(observations), np.array(memories, np.int64)
    np.testing.assert_array_equal(observations[:, :128], memories)
    change = (np.diff(memories, axis=0) + 128) % 256 - 128
    np.testing.assert_array_equal(observations[1:, 128:], change)
    assert not observations[0, 128:].any() and change.min() < 0 < change.max()
    again = game.reset(seed=0)[0]
    np.testing.assert_array_equal(again, observations[0])  # nothing is left of the game before
    assert any((game.reset(seed=k)[0] != again).any() for k in range(1, 4))  # games differ


@pytest.mark.slow
@needs("ale_py")
def test_the_atari_example_runs_as_written(folder):
    """With fewer steps than the page has, which take a quarter of an hour."""
    train, evaluate = SECTIONS[ATARI]
    run(train, folder, "--total-timesteps", "20480")
    assert "8 greedy episodes" in run(evaluate, folder)
    assert summary(folder, "atari_ram")["env_steps"] == 20480


@pytest.mark.slow
def test_the_poker_example_runs(folder):
    """One generation; tests/test_kuhn_poker.py trains all of them."""
    (line,) = SECTIONS[KUHN]
    output = run(line, folder, "--generations", "1")
    assert "exploitability" in output


@pytest.mark.slow
@needs("pgx")
def test_the_connect_four_example_runs(folder):
    """One generation of one update; tests/test_suites.py looks at the table."""
    (line,) = SECTIONS[CONNECT]
    small = "--generations 1 --updates 1 --num-envs 8 --games 12 --minimax-games 2"
    output = run(line, folder, *small.split())
    rows = table.read(folder.parent / "runs" / "league.csv")
    assert "minimax of depth 4" in output and [r["generation"] for r in rows] == ["0", "1"]


@pytest.mark.slow
@needs("optuna")
def test_the_optuna_example_runs_as_written(folder):
    (line,) = SECTIONS[OPTUNA]
    output = run(line, folder)
    assert float(re.search(r"fresh seeds ([\d.]+)", output)[1]) > 300
