"""The progress of a run while it runs: a few live lines on a terminal, lines of text elsewhere."""

import contextlib
import io
import itertools
import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console, Group, RenderableType
from rich.table import Table

# Where there is no terminal, a line of progress at least this often.
LINE_SECONDS = 60.0
REDRAWS_PER_SECOND = 4
# Units in which runs count their progress: name in summary.json -> words.
UNITS = {
    "env_steps": "environment steps",
    "responses": "responses",
    "sequences": "sequences",
    "agent_updates": "agent updates",
}
# The metrics that a display shows, where the run has them: name in metrics.jsonl -> label. They
# stand on two lines, for narrow terminals. Other units have those of environment steps.
SHOWN = {
    "env_steps": (
        {"episode_return": "return", "episode_length": "length"},
        {
            "entropy": "entropy",
            "approx_kl": "approx kl",
            "explained_variance": "explained variance",
        },
    ),
    "responses": (
        {"objective": "objective", "score": "score", "kl": "kl"},
        {"response_length": "tokens per response", "eos_rate": "ended", "approx_kl": "approx kl"},
    ),
    "sequences": (
        {"loss": "loss", "accuracy": "accuracy"},
        {"grad_norm": "gradient norm", "learning_rate": "learning rate"},
    ),
}
BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 24
# A file or a pipe has no width of its own; the usual 80 characters would fold tables.
FILE_WIDTH = 110
# Characters of the longest number of steps that is written with all its digits.
LONG_NUMBER = 10


class Display:
    """The progress of a run.

    A thread of rich draws it a few times a second; `show` only stores the values.

    Args:
        total: number of units of the run, such as environment steps.
        done: number of units made in earlier sessions.
        title: name of the run; "" for none.
        quiet: whether nothing is printed where there is neither a terminal nor a notebook.
        unit: unit of progress, a key of UNITS.

    Attributes:
        drawn: the display that is on the terminal now, if there is one.
    """

    drawn: "ClassVar[Display | None]" = None

    def __init__(
        self,
        total: int,
        done: int,
        title: str = "",
        *,
        quiet: bool = False,
        unit: str = "env_steps",
    ) -> None:
        from rich.live import Live

        self._total, self._title = total, title
        self._unit = unit if unit in ("responses", "sequences") else "steps"
        self._shown = SHOWN.get(unit, SHOWN["env_steps"])
        self._step, self._rate, self._detail = done, math.nan, ""
        self._working = ""
        self._metrics: dict[str, float] = {}
        self._headline = next(iter(self._shown[0]))
        self._history: list[float] = []
        self._started = self._printed_at = time.monotonic()
        self._printed = done
        self._live, self._quiet = on_terminal(sys.stderr), quiet
        self._notebook = Notebook.found()
        self._display = Live(
            console=Console(stderr=True),
            get_renderable=self._render,
            refresh_per_second=REDRAWS_PER_SECOND,
            transient=True,
            # Lines for a file or a pipe do not belong on the terminal.
            redirect_stdout=on_terminal(sys.stdout),
        )

    def __enter__(self) -> "Display":
        if self._live:
            with contextlib.suppress(OSError, ValueError):
                self._display.start()
            Display.drawn = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            Display.drawn = None
            # A terminal that was closed takes nothing more.
            with contextlib.suppress(OSError, ValueError):
                self._display.stop()

    @contextlib.contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show a word about the work in progress while a block runs."""
        self._working = text
        try:
            yield
        finally:
            self._working = ""

    def show(
        self, step: int, rate: float, detail: str, rows: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Store the values that are drawn next.

        Args:
            step: number of units made, earlier sessions included.
            rate: number of units per second.
            detail: a text besides these numbers.
            rows: rows of metrics.jsonl since the last call, which a terminal shows instead of the
                detail.
        """
        self._step, self._rate, self._detail = step, rate, detail
        if not (self._live or self._notebook):
            return None if self._quiet else self._print()
        means = {name: _mean(rows, name) for line in self._shown for name in line}
        self._metrics |= {name: x for name, x in means.items() if x is not None}
        headline = means[self._headline]
        if headline is not None:
            self._history.append(headline)
        if self._notebook and not self._live:
            self._notebook.show(self._render(), last=step >= self._total)
        return None

    def _print(self) -> None:
        """A line of text, if one is due."""
        step, now = self._step, time.monotonic()
        due = step - self._printed >= self._total / 10
        due |= step == self._total and self._printed < step
        if due or now - self._printed_at >= LINE_SECONDS:
            self._printed, self._printed_at = step, now
            left = (self._total - step) / self._rate if self._rate else math.nan
            time_left = f"   {left:,.0f} s left" if step < self._total else ""
            detail = self._detail.replace("\n", ", ")
            unit = self._unit
            say(f"{step:>12,} {unit}   {detail}   {self._rate:,.0f} {unit}/s{time_left}")

    def _render(self) -> RenderableType:
        """The title with the elapsed time, the metrics or the detail, and a progress bar."""
        from rich.table import Table
        from rich.text import Text

        elapsed = _clock(time.monotonic() - self._started)
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(Text(self._title, style="bold"), Text(elapsed, style="dim"))
        lines: list[RenderableType] = [head] if self._title else []
        if self._metrics:
            known = [line for line in self._shown if line.keys() & self._metrics.keys()]
            lines += [self._words(line) for line in known]
        elif self._detail:
            lines += [Text(x, no_wrap=True, overflow="ellipsis") for x in self._detail.split("\n")]
        if self._working:
            lines.append(Text(f"{self._working} ...", style="dim", no_wrap=True))
        return Group(*lines, self._bar())

    def _words(self, names: dict[str, str]) -> RenderableType:
        """Metrics; behind the first metric its earlier values, as a line of blocks."""
        from rich.text import Text

        text = Text(no_wrap=True, overflow="ellipsis")
        for name, shown in names.items():
            if name in self._metrics:
                text.append(f"{shown} ", style="dim")
                text.append(_figure(self._metrics[name]), style="bold")
                if name == self._headline and len(self._history) > 1:
                    text.append(f"  {sparkline(self._history)}", style="cyan")
                text.append("   ")
        return text

    def _bar(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        number: Callable[[float], str] = "{:,.0f}".format
        if len(number(self._total)) > LONG_NUMBER:  # narrow terminals have no room for all digits
            number = short
        words = Text(f"{number(self._step)} / {number(self._total)} {self._unit}   ")
        if math.isfinite(self._rate):
            words.append(f"{number(self._rate)} {self._unit}/s", style="green")
        if self._rate > 0 and self._step < self._total:
            words.append(f"   {_clock((self._total - self._step) / self._rate)} left", style="cyan")
        line = Table.grid(expand=True, padding=(0, 2, 0, 0))
        line.add_column(ratio=1, min_width=10)
        line.add_column(no_wrap=True)
        line.add_row(ProgressBar(self._total, self._step), words)
        return line


class Notebook:
    """One output of a notebook cell, which is updated during a run."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = -math.inf

    @staticmethod
    def found() -> "Notebook | None":
        """The output of a notebook cell; None if this process is not a notebook kernel."""
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython is not None else None
        return Notebook() if shell is not None and hasattr(shell, "kernel") else None

    def show(self, lines: RenderableType, *, last: bool = False) -> None:
        """Update the output, at most a few times per second.

        Args:
            lines: content to show.
            last: whether this is the last content, which is always shown.
        """
        now = time.monotonic()
        if not last and now - self._shown_at < 1 / REDRAWS_PER_SECOND:
            return
        self._shown_at = now
        console = Console(file=io.StringIO(), width=100, force_terminal=False, color_system=None)
        console.print(lines)
        shown = {"text/plain": console.file.getvalue()}  # type: ignore[attr-defined]
        if self._handle is None:
            from IPython.display import display

            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """Draw numbers as a line of blocks, scaled to their minimum and maximum.

    Args:
        values: finite numbers in order; more than `width` of them are averaged in groups.
        width: largest number of blocks.
    """
    count = min(width, len(values))
    cuts = [k * len(values) // count for k in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, span = min(means), max(means) - min(means)
    steps = (len(BLOCKS) - 1) / span if span > 0 else 0.0
    return "".join(BLOCKS[round((x - low) * steps)] for x in means)


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """The mean of a metric over the rows that have a value; None if there are none."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def _figure(x: float) -> str:
    """A number with three significant digits, or with one decimal place from 100 on."""
    return f"{x:,.1f}" if abs(x) >= 100 else f"{x:.3g}" if abs(x) >= 1e-3 or x == 0 else f"{x:.1e}"


def short(x: float) -> str:
    """A large number in four characters and a letter: 123456789 as 123.5M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.1f}{letter}"
    return f"{x:.0f}"


def _clock(seconds: float) -> str:
    """A time in seconds as text, for example 3725 as 1:02:05."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_summary(title: str, summary: dict[str, Any], run_dir: Path) -> None:
    """Print the result of a run as a table."""
    table = Table(title=title, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    if summary["status"] != "finished":
        table.add_row("status", summary["status"])
    if summary.get("ended_early"):
        table.add_row("ended early", summary["ended_early"])
    if summary.get("eval_episodes"):
        table.add_row("return", _evaluated(summary))
    if summary.get("eval_data"):
        for name, value in summary.items():
            if name.startswith("eval_"):
                table.add_row(name.replace("_", " "), _value(value))
    for unit, words in UNITS.items():
        if unit in summary:
            table.add_row(words, f"{summary[unit]:,}")
            if summary[f"{unit}_per_second"]:
                table.add_row(f"{words} per second", f"{summary[f'{unit}_per_second']:,}")
    table.add_row(
        "compile / train", f"{summary['compile_seconds']} s / {summary['train_seconds']} s"
    )
    table.add_row("device", summary["device"])
    table.add_row("run directory", str(run_dir))
    say(table)


def print_next(steps: dict[str, str]) -> None:
    """The commands that may follow, one a line: the name of a step, and a command to paste."""
    width = max(map(len, steps), default=0) + 2
    if steps:
        say("next:")
    for name, command in steps.items():
        say(f"  {name:{width}}{command}")


def _evaluated(summary: dict[str, Any]) -> str:
    """The result of the greedy evaluation episodes in a summary, as text."""
    mean, std = (summary.get(f"eval_return_{name}") for name in ("mean", "std"))
    low, high = (summary.get(f"eval_return_ci95_{name}") for name in ("low", "high"))
    shown = "not finite" if mean is None else f"{mean:.2f}"
    shown += "" if std is None else f" ± {std:.2f}"
    cut = summary.get("eval_episodes_cut")
    shown += f" over {summary['eval_episodes']} episodes, greedy"
    shown += f", {cut} of them cut before their end" if cut else ""
    interval = "" if low is None else f"; 95 % interval of the mean [{low:.2f}, {high:.2f}]"
    return shown + interval


def _value(value: Any) -> str:
    """A number of a summary as text; null means that the number is not finite."""
    if value is None:
        return "not finite"
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def settle() -> None:
    """Make stdout and stderr safe to write to, however the command was started.

    If one of them is closed (`>&-`), its file descriptor would be reused by the next opened file,
    and output of libraries would be written into that file; it is replaced by the null device.
    Characters that the encoding lacks are replaced.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # uses the lowest free descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")


def finish() -> None:
    """Write what stdout and stderr still hold; a closed pipe (`| head`) only ends the output."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            _silence(name)
        except (AttributeError, ValueError):  # the stream is missing or closed
            continue


def has_reader(stream: Any) -> bool:
    """Whether a stream can be written to; False for a pipe whose reader has ended."""
    try:
        waiting = select.poll()
        waiting.register(stream, select.POLLOUT)
        return not any(event & select.POLLERR for _, event in waiting.poll(0))
    except (AttributeError, OSError, TypeError, ValueError):  # no file, or no poll on this system
        return True


def on_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal; False if it is closed or missing."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def say(what: Any) -> None:
    """Print to stdout; a closed pipe (`| head`) or a full disk only ends the output.

    Args:
        what: text, printed unchanged, or a rich table, whose texts are also shown unchanged: names
            that contain brackets are not interpreted as markup.
    """
    _print(what, sys.stdout, "stdout")


def complain(text: str) -> None:
    """Print a line to stderr; errors are handled as in `say`."""
    _print(text, sys.stderr, "stderr")


def _print(what: Any, stream: Any, name: str) -> None:
    if stream is None or getattr(stream, "closed", False):
        return
    try:
        if isinstance(what, str):
            print(what, file=stream, flush=True)
        else:
            width = None if on_terminal(stream) else FILE_WIDTH
            Console(file=stream, width=width, markup=False, emoji=False).print(what)
            stream.flush()
    except UnicodeEncodeError:
        _print(_plain(what, getattr(stream, "encoding", None) or "ascii"), stream, name)
    except OSError:
        _silence(name)


def _plain(what: Any, encoding: str) -> str:
    """The text to be printed, with "?" in place of characters that an encoding lacks."""
    if not isinstance(what, str):
        console = Console(file=io.StringIO(), width=FILE_WIDTH, markup=False, emoji=False)
        console.print(what)
        what = console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]
    return what.encode(encoding, "replace").decode(encoding)


def _silence(name: str) -> None:
    """Redirect stdout or stderr to the null device after it can no longer be written to."""
    nothing = open(os.devnull, "w")  # noqa: PTH123
    try:
        # This also covers buffered text, which would fail again when the process ends.
        os.dup2(nothing.fileno(), getattr(sys, name).fileno())
    except (OSError, ValueError, AttributeError):
        setattr(sys, name, nothing)


def show_cursor() -> None:
    """Restore the terminal after a live display, for exits that skip all cleanup."""
    if on_terminal(sys.stderr):
        with contextlib.suppress(OSError):
            sys.stderr.write("\x1b[?25h\n")
            sys.stderr.flush()


def width(stream: Any) -> int:
    """The number of characters of a line: that of the terminal, or of a table in a file."""
    return Console(file=stream).width if on_terminal(stream) else FILE_WIDTH


def status(text: str) -> AbstractContextManager[Any]:
    """Show the current activity on a terminal while a block runs.

    Two live displays would overwrite each other's lines: if a `Display` is already drawn, the text
    is shown in it.
    """
    if Display.drawn is not None:
        return Display.drawn.working(text)
    return Console(stderr=True).status(text) if on_terminal(sys.stderr) else nullcontext()
