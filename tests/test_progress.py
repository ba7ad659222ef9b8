"""The progress display: text without a terminal, a few updated lines with one."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from ppo_jax.runs import terminal
from ppo_jax.runs.terminal import Display, sparkline

ROWS = [
    {"episode_return": 10.0, "episode_length": 20.0, "entropy": 0.5, "approx_kl": 0.004},
    {"episode_return": None, "episode_length": None, "entropy": 0.7, "approx_kl": 0.006},
]


def drawn(shown: Display, width=80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(shown._render())
    return console.file.getvalue()


@pytest.fixture
def on_terminal(monkeypatch):
    """A display that behaves as on a terminal, without writing to it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_text_is_a_line_per_tenth(capsys):
    with Display(1000, 0, "title") as shown:
        for step in range(10, 1001, 10):
            shown.show(step, 100.0, "return 1.0", ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "         100 steps   return 1.0   100 steps/s   9 s left"
    assert lines[-1] == "       1,000 steps   return 1.0   100 steps/s"


def test_text_is_there_at_least_once_a_minute(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Display(10**9, 0) as shown:
        for now[0] in (30.0, 59.0, 61.0, 100.0, 122.0):
            shown.show(int(now[0]), 1.0, "x")
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_terminal_shows_what_the_algorithm_has(on_terminal, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = Display(500_000, 0, "ppo on CartPole-v1, seed 0")
    shown.show(1000, 2000.0, "unused", ROWS)
    shown.show(5000, 1000.0, "unused", [{**ROWS[0], "episode_return": 1234.5}])
    now[0] = 165.0
    lines = drawn(shown).splitlines()
    assert lines[0].startswith("ppo on CartPole-v1, seed 0") and lines[0].endswith("1:05")
    assert lines[1].rstrip() == "return 1,234.5  ▁█   length 20"
    assert lines[2].rstrip() == "entropy 0.5   approx kl 0.004"  # no explained variance
    assert lines[3].endswith("5,000 / 500,000 steps   1,000 steps/s   8:15 left")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("unit", "row", "lines"),
    [
        (
            "responses",
            {"objective": 1.0, "score": 2.0, "kl": 0.5, "response_length": 7.0},
            ["objective 1   score 2   kl 0.5", "tokens per response 7"],
        ),
        ("sequences", {"loss": 1.5, "grad_norm": 2.0}, ["loss 1.5", "gradient norm 2"]),
    ],
)
def test_language_models_have_names_of_their_own(on_terminal, unit, row, lines):
    shown = Display(100, 0, "stage", unit=unit)
    shown.show(20, 5.0, "unused", [row])
    drawn_lines = drawn(shown).splitlines()
    assert [line.rstrip() for line in drawn_lines[1:3]] == lines
    assert drawn_lines[3].endswith(f"20 / 100 {unit}   5 {unit}/s   0:16 left")


def test_a_terminal_shows_words_where_there_are_no_rows(on_terminal):
    shown = Display(100, 10)
    shown.show(20, 5.0, "4 agents")
    assert drawn(shown).splitlines()[0].rstrip() == "4 agents"
    assert "20 / 100 steps   5 steps/s   0:16 left" in drawn(shown)


def test_nothing_is_drawn_by_show(on_terminal, monkeypatch):
    """Training does not wait for the terminal, because a thread draws."""
    shown = Display(100, 0)
    monkeypatch.setattr(shown, "_render", lambda: pytest.fail("drawn"))
    for step in range(100):
        shown.show(step, 1.0, "", ROWS)


def test_narrow_terminals_have_no_more_lines(on_terminal):
    shown = Display(500_000, 0, "ppo on CartPole-v1, seed 0")
    shown.show(1000, 2000.0, "", [ROWS[0] | {"explained_variance": 0.9}])
    assert len(drawn(shown, 60).splitlines()) == 4


def test_a_sparkline_is_the_shape_of_its_numbers():
    assert sparkline([0, 7]) == "▁█" and sparkline(range(8)) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([0, 2, 6, 8, 4, 4], width=3) == "▁█▅"
    assert len(sparkline(range(1000))) == terminal.SPARKS


def test_a_notebook_has_one_output_that_is_replaced(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

    def display(data, raw, display_id):
        shown.append(data["text/plain"])
        return handle

    module = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    progress = Display(1000, 0, "ppo", quiet=True)
    with progress:
        for step in (100, 500, 1000):  # the second is too soon after the first
            progress.show(step, 50.0, "", [{"episode_return": 3.0}])
    assert len(shown) == 2 and "1,000 / 1,000 steps" in shown[-1] and "return 3" in shown[-1]


def test_a_quiet_run_prints_nothing(capsys):
    with Display(1000, 0, "ppo", quiet=True) as progress:
        progress.show(1000, 50.0, "return 3")
    assert capsys.readouterr() == ("", "")


def test_clocks_and_figures_are_short():
    assert [terminal._clock(s) for s in (5, 65.9, 3725)] == ["0:05", "1:05", "1:02:05"]
    assert [terminal._figure(x) for x in (1234.56, -21.0, 0.00431, 0.0, 2e-5)] == [
        "1,234.6", "-21", "0.00431", "0", "2.0e-05"
    ]  # fmt: skip


# --- the end of a run, on terminals and other streams -----------------------------------------

SUMMARY = {
    "status": "finished", "eval_return_mean": 1.0, "eval_return_std": 0.5, "eval_episodes": 4,
    "eval_return_ci95_low": 0.2, "eval_return_ci95_high": 1.8, "env_steps": 64,
    "env_steps_per_second": 10.0, "compile_seconds": 1.0, "train_seconds": 2.0, "device": "cpu",
}  # fmt: skip
NAMES = ["[/", "[bold]x[/bold]", "a[/red]", "[link=x]", ":smile:", "ü ± ∞", "\udcff", "[", "]"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_names_are_shown_as_they_are(monkeypatch, name, encoding):
    """Text is neither markup nor emoji; characters that an encoding lacks are replaced."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.print_summary(name, SUMMARY, Path("runs") / name)
    terminal.say(f"report: {name}")
    shown = stream.buffer.getvalue().decode(encoding)
    assert shown.count(name.encode(encoding, "replace").decode(encoding)) >= 2
    assert "1.00 ± 0.50" in shown or encoding == "ascii"


class Broken(io.TextIOWrapper):
    """A pipe whose reader has closed it, or a full disk."""

    def __init__(self):
        super().__init__(io.BytesIO(), "utf-8")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [lambda: None, closed, Broken])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_streams_that_take_nothing_are_no_obstacle(monkeypatch, make, name):
    stream = make()
    monkeypatch.setattr(sys, name, stream)
    with Display(10, 0, "x") as shown:
        shown.show(10, 1.0, "", ROWS)
    terminal.print_summary("x", SUMMARY, Path("runs/x"))
    terminal.say("x")
    terminal.complain("x")
    terminal.show_cursor()
    with terminal.status("compiling"):
        pass
    if isinstance(stream, Broken):  # further output is discarded without errors
        getattr(sys, name).write("x")
        assert getattr(sys, name) is not stream
        monkeypatch.setattr(Broken, "flush", io.TextIOWrapper.flush)


@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_terminals_of_any_width(on_terminal, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = Display(500_000, 0, "ppo on CartPole-v1, seed 0")
    shown.show(1000, 2000.0, "", ROWS)
    drawn(shown, width)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.print_summary("x", SUMMARY, Path("runs/x"))
    assert capsys.readouterr().out.strip()


def test_numbers_that_are_not_finite_have_a_word(capsys):
    found = {"eval_objective": None, "eval_score": 1.5, "eval_data": "4 of 80 examples"}
    terminal.print_summary("ppo", SUMMARY | found, Path("runs/x"))
    shown = capsys.readouterr().out
    assert "not finite" in shown and "1.5" in shown and "4 of 80 examples" in shown


TRAIN = [
    sys.executable, "-m", "ppo_jax.train", "--preset", "none", "--num-envs", "2", "--num-steps",
    "8", "--total-timesteps", "64", "--hidden", "4", "--eval-episodes", "2", "--run-dir", "[/a]",
]  # fmt: skip
# How the command is started, and additional environment variables.
STARTS = {
    "stdout closed": ('exec "$@" >&-', {}),
    "stderr closed": ('exec "$@" 2>&-', {}),
    "all closed": ('exec "$@" <&- >&- 2>&-', {}),
    "a reader that goes away": ('set -o pipefail; "$@" | head -1', {}),
    "a full disk": ('exec "$@" > /dev/full', {}),
    "ascii": ('exec "$@"', {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}),
    "latin-1": ('exec "$@"', {"PYTHONIOENCODING": "latin-1:strict", "PYTHONUTF8": "0"}),
    "a dumb terminal": ('exec script -qec "$*" /dev/null', {"TERM": "dumb", "COLUMNS": "1"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", STARTS)
def test_a_finished_run_ends_with_0(tmp_path, how):
    """Several problems with the terminal, in a folder whose name contains part of rich's markup."""
    script, more = STARTS[how]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **more}
    found = subprocess.run(
        ["bash", "-c", script, "bash", *TRAIN],
        cwd=tmp_path, env=environment, capture_output=True, text=True, errors="replace",
        timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr + found.stdout
    summary = json.loads((tmp_path / "[" / "a]" / "summary.json").read_text())
    assert summary["status"] == "finished"
