"""Progress and tables on a terminal of 80 columns: no line is left behind, rows differ."""

import io
import sys

import numpy as np
import pytest
from rich.console import Console

from narrow import COLUMNS, Screen, run
from ppo_jax.config import make
from ppo_jax.runs import terminal
from ppo_jax.sweep.results import PointResult, Setting
from ppo_jax.sweep.table import table_of

SWEEP = """
import time
from ppo_jax.runs import terminal

LAYOUT = "layout: 40 chunks of 10 agents over 2 devices (TFRT_CPU_0, TFRT_CPU_1), 20 rounds; 12 MiB"
with terminal.Display(40_000_000_000, 0, "4 configurations x 10 seeds") as shown:
    with terminal.status("compiling"):
        time.sleep(0.4)
    terminal.say(LAYOUT)
    for k in range(1, 5):
        best = f"best return 12{k} (learning_rate=0.0012345 clip_eps=0.2 gae_lambda=0.95 gamma=0"
        shown.show(k * 10**10, 12_345_678.0, f"{k} of 40 agents finished, 10 at update 3\\n{best}")
        with terminal.status("compiling"):
            time.sleep(0.3)
terminal.say("the end")
"""


def test_a_display_leaves_no_line_behind():
    frames: list[list[str]] = []
    code, text = run([sys.executable, "-c", SWEEP])
    screen = Screen(frames.append)
    screen.feed(text)
    assert code == 0, text
    for lines in frames:
        for word in ("agents finished", "best return", "compiling", "steps/s", "4 configurations"):
            assert sum(word in line for line in lines) <= 1, lines
    drawn = [line for lines in frames for line in lines]
    assert any(line.startswith("best return 124 (learning_rate=0.0012345") for line in drawn)
    assert any("40.0G / 40.0G steps   12.3M steps/s" in line for line in drawn)
    assert any("compiling ..." in line for line in drawn)
    # At the end the display is gone, and what was printed stays.
    left = [line for line in screen.lines if line]
    assert " ".join(left).startswith("layout: 40 chunks of 10 agents") and left[-1] == "the end"
    assert len(left) == 3  # the layout has two lines of 80 columns


def test_the_display_of_a_run_leaves_no_line_behind():
    code, text = run(
        [
            sys.executable,
            "-c",
            "import time\nfrom ppo_jax.runs import terminal\n"
            "with terminal.Display(10**6, 0, 'ppo on CartPole-v1, seed 0') as shown:\n"
            "    for k in range(5):\n"
            "        row = {'episode_return': 10.0 * k, 'entropy': 0.5}\n"
            "        shown.show(k * 10**5, 1e5, '', [row])\n"
            "        time.sleep(0.3)\n",
        ]
    )
    frames: list[list[str]] = []
    screen = Screen(frames.append)
    screen.feed(text)
    assert code == 0 and not any(screen.lines)
    assert max(sum("entropy" in line for line in lines) for lines in frames) == 1


def test_output_for_a_file_is_not_drawn_on_the_terminal(tmp_path):
    code, text = run(
        [
            "sh",
            "-c",
            f'{sys.executable} -c "from ppo_jax.runs import terminal; '
            "shown = terminal.Display(10, 0, 'x'); shown.__enter__(); terminal.say('mine'); "
            f'shown.__exit__()" > {tmp_path / "out.txt"}',
        ]
    )
    assert code == 0 and "mine" not in text
    assert (tmp_path / "out.txt").read_text() == "mine\n"


def setting(number: int, **point) -> Setting:
    """A configuration with three seeds."""
    config, curve = make(preset="none"), np.linspace(0, 480 + number, 5)
    result = PointResult(
        point,
        config,
        (0, 1, 2),
        np.arange(1, 6) * 100_000,
        {"episode_return": np.tile(curve, (3, 1)), "episodes": np.ones((3, 5))},
        np.array([480.0, 490.0, 499.5]) + number / 10,
        np.zeros(3),
        np.zeros(3, bool),
        np.zeros(3, int),
    )
    name = " ".join(f"{n}={x}" for n, x in point.items())
    return Setting(number, name, name, point, (result,), (result.score,), 0.5)


def test_rows_of_the_table_can_be_told_apart():
    order = [
        setting(0, learning_rate=0.0012345, clip_eps=0.2, gae_lambda=0.95),
        setting(1, learning_rate=0.0012346, clip_eps=0.2, gae_lambda=0.95),
        setting(2, learning_rate="cosine(0.003,0.0,warmup=0.05)", clip_eps=0.2, gae_lambda=0.9),
    ]
    for width in (80, 120):
        console = Console(file=io.StringIO(), width=width)
        console.print(table_of(order, None, width))
        text = console.file.getvalue()
        lines = text.splitlines()
        assert max(map(len, lines)) <= width and "…" not in text
        first = "".join(line[2:].partition("  ")[0] for line in lines if line[2:3].strip())
        for found in order:
            assert found.name.replace(" ", "") in first.replace(" ", "")
        assert ("AUC" in text) == (width == 120)


def test_large_numbers_are_short():
    assert [terminal.short(x) for x in (7, 1234, 123_456_789, 4e10, 2e12)] == [
        "7", "1.2k", "123.5M", "40.0G", "2.0T"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_sweep_on_a_terminal_of_80_columns(tmp_path):
    words = [
        sys.executable, "-m", "ppo_jax", "sweep", "--preset", "none", "--env", "CartPole-v1",
        "--num-envs", "4", "--num-steps", "32", "--total-timesteps", "6400", "--hidden", "8",
        "--seeds", "3", "--vary", "learning_rate=1e-3,1.1e-3", "--vary", "gae_lambda=0.9,0.95",
        "--eval-episodes", "4", "--run-dir", str(tmp_path / "sweep"), "--agents-per-device", "2",
    ]  # fmt: skip
    code, text = run(words)
    frames: list[list[str]] = []
    screen = Screen(frames.append)
    screen.feed(text)
    assert code == 0, text
    for lines in frames:
        for word in ("agents finished", "steps/s", "compiling"):
            assert sum(word in line for line in lines) <= 1, lines
    assert any("best return" in line for lines in frames for line in lines)
    left = "\n".join(screen.lines)
    for rate in ("learning_rate=0.001", "learning_rate=0.0011"):
        assert left.count(f"{rate} ") >= 2 and "…" not in left, left
    assert "next:" in left and "report:" in left and "agents finished" not in left
    assert all(len(line) <= COLUMNS for line in screen.lines)
