"""Commands in README, docs and notebooks are parsed here, and run with -m documents; links have
existing targets, and Python code of the pages prints the stated output."""

import argparse
import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

import documents
from ppo_jax.cli import flags
from ppo_jax.cli import rlhf as language
from ppo_jax.cli import sweep as command
from ppo_jax.cli import train as train_command
from ppo_jax.cli.cluster import CLUSTER_OPTIONS
from ppo_jax.config import check
from ppo_jax.experiment import RunOptions

ROOT = documents.ROOT
ALL = {documents.name(d): d for d in documents.documents()}

# Commands that cannot be run as written, and why; a pattern without a matching command is an error.
NOT_RUN = {
    r"^(pip|uv|git) |run\.py install ": "the network",
    r"^\.ci/|^\.venv/|run\.py test": "is what runs this, or a part of it",
    r"gymnasium:LunarLander|ALE/|NoFrameskip": "needs an extra; tests of its own",
    r"env (brax|playground|navix|xminigrid|craftax|jumanji|pgx|jaxmarl):": "needs an extra; "
    "tests/test_suites.py",
    r"evaluate (RUN|runs/NAME) ": "the reader's own run",
    r"--compare DIR1 DIR2|--run-dir DIR ": "the reader's own sweeps; tests/test_sweep_session.py",
    r"--cluster (ray|slurm)": "needs an extra; tests/test_sweep_cluster.py",
    r"--preset pong(_a2c)?\b|runs/pong\b": "half an hour",
    r"sweep --env CartPole-v1 --seeds 128": "64 million steps",
    r"sweep --seeds (16 .*clip_eps|8 --sample 64|10 --vary algorithm)": "20 to 256 million steps",
    r"benchmarks\.(throughput |rlhf$)": "installs the peers",
    r"benchmarks\.accelerator( --minutes|$)": "needs an accelerator; tests/test_accelerator.py",
    r"ppo-jax rlhf (sft|reward|ppo|generate|evaluate) ": "models of the reader's own; "
    "tests/test_rlhf_command.py",
    r"ppo-jax rlhf( --data|$)|benchmarks\.alignment": "two minutes and more",
    r"--process-id|--distributed": "one of several processes; tests/test_cluster_processes.py",
    r"ppo_jax play ": "draws in a terminal; tests/test_zoo.py",
    r"benchmarks\.zoo ": "trains for minutes, or the reader's own runs; tests/test_zoo.py",
    r"--format onnx|--wandb|--trackio": "needs an extra; tests of its own",
}
# Programs that only a reader's machine has, and the same command as started by run.py.
REPLACED = {"python3 run.py train": "python -m ppo_jax.train", "ppo-jax ": "python -m ppo_jax."}


def reason(line: str) -> str | None:
    """The reason why a command is not run."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), None)


def words(line: str) -> tuple[str, list[str]]:
    """(module, arguments) of a Python command."""
    for written, run in REPLACED.items():
        line = line.replace(written, run)
    first, flag, module, *arguments = shlex.split(line)
    assert first in ("python", "python3") and flag == "-m", line
    return module, arguments


def python_commands() -> list[tuple[str, str]]:
    """(document, command) for all commands that start a module of this repository."""
    found = [(n, c) for n, d in ALL.items() for c in documents.commands(d)]
    others = re.compile(r"run\.py (test|install)")
    return [
        (n, c) for n, c in found if c.startswith(("python", "ppo-jax")) and not others.search(c)
    ]


def test_there_are_documents_with_commands():
    assert {"README.md", "docs/how_to.md", "docs/algorithms/ppo.md"} <= {*ALL}
    assert len(python_commands()) > 60


def test_every_reason_is_one_for_something():
    everything = [c for d in ALL.values() for c in documents.commands(d)]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, c) for c in everything), pattern


@pytest.mark.parametrize(
    "module", ["ppo_jax.train", "ppo_jax.sweep", "ppo_jax.evaluate", "ppo_jax.rlhf"]
)
def test_every_flag_of_the_documents_exists(module, monkeypatch, tmp_path):
    """Every command results in a valid configuration; none is run here."""
    monkeypatch.chdir(ROOT)
    write_files(tmp_path, monkeypatch)
    lines = [c for _, c in python_commands() if words(c)[0] == module]
    assert len(lines) >= 5
    check_of = {
        "ppo_jax.train": train,
        "ppo_jax.sweep": sweep,
        "ppo_jax.evaluate": evaluate,
        "ppo_jax.rlhf": rlhf,
    }
    for line in lines:
        check_of[module]([w for w in words(line)[1] if w != "--help"])


def write_files(folder, monkeypatch) -> None:
    """The modules that pages ask their readers to write, imported into this process."""
    monkeypatch.syspath_prepend(folder)
    for document in ALL.values():
        for name, text in documents.files(document).items():
            (folder / name).write_text(text)
            monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)


def rlhf(arguments: list[str]) -> None:
    name = arguments[0] if arguments and not arguments[0].startswith("-") else "demo"
    rest = arguments if name == "demo" else arguments[1:]
    assert name in language.COMMANDS
    if name in language.KINDS:
        language._values(name, rest, language.KINDS[name])
    else:
        language._other_values(name, rest)


def train(arguments: list[str]) -> None:
    if arguments[:1] == ["--resume"]:
        arguments = arguments[2:]
        named = {w[2:].replace("-", "_") for w in arguments if w.startswith("--")}
        # These files may change, too.
        options = {f.name for f in dataclasses.fields(RunOptions)} | {*CLUSTER_OPTIONS}
        assert named <= {*train_command.FREE_ON_RESUME} | options, named
    config, _ = train_command._parse(arguments, flags.base_config(arguments), {})
    check(config)


def sweep(arguments: list[str]) -> None:
    base = command.base_config(arguments)
    flags = command.parse(arguments, base, **command.FLAGS)
    if not {"--resume", "--compare"} & {*arguments}:
        names = [f.name for f in dataclasses.fields(command.PointOptions)]
        points = command.PointOptions(**{n: flags[1][n] for n in names})
        assert command.build_spec(arguments, flags[0], points).configs


def evaluate(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("run")
    for flag in ("--episodes", "--checkpoint", "--seed", "--gif", "--env"):
        parser.add_argument(flag)
    for flag in ("--stochastic", "--trust"):
        parser.add_argument(flag, action="store_true")
    parser.parse_args(arguments)


def test_what_the_text_mentions_can_be_started():
    for document in ALL.values():
        for line in documents.inline_commands(document) + documents.commands(document):
            for module in re.findall(r"-m ((?:ppo_jax|benchmarks)[\w.]*)", line):
                assert importlib.util.find_spec(module), line


RUNNABLE = [n for n, d in ALL.items() if any(reason(c) is None for c in documents.commands(d))]


@pytest.mark.documents
@pytest.mark.parametrize("document", RUNNABLE)
def test_the_commands_of_a_document_run_as_written(document, tmp_path, monkeypatch):
    """The commands of a page, run in order in one folder, as by a reader."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, text in documents.files(ALL[document]).items():
        (tmp_path / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for line in documents.commands(ALL[document]):
        if reason(line) is None:
            module, arguments = words(line)
            arguments = [sys.executable, "-m", module, *arguments]
            done = subprocess.run(
                arguments, cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    if document == "docs/how_to.md":
        monkeypatch.chdir(tmp_path)
        documents.run_python(ALL[document])


@pytest.mark.parametrize("page", ["quickstart", "coming_from"])
def test_the_python_of_a_page_prints_what_it_says(page, capsys):
    printed = documents.run_python(ROOT / f"docs/{page}.md")
    assert capsys.readouterr().out.split("\n")[:-1] == printed and printed


@pytest.mark.parametrize("document", ALL)
def test_links_lead_somewhere(document):
    """Files and headings must exist; for other targets, only the form is checked."""
    path = ALL[document]
    for link in documents.links(path):
        target = urlsplit(link)
        if target.scheme:
            assert target.scheme == "https" and "." in target.netloc, f"{document}: {link}"
            continue
        place = path.parent / target.path if target.path else path
        assert place.exists(), f"{document}: {link}"
        if target.fragment and place.suffix in (".md", ".ipynb"):
            assert target.fragment in documents.anchors(place), f"{document}: {link}"
