"""Lists on a terminal: a name and one line about it."""

import re
import shutil
import sys
import textwrap

from ppo_jax.config import ConfigError, commands
from ppo_jax.runs import terminal

Rows = list[tuple[str, ...]]
GAP = "  "
# The smallest width of a last column that is wrapped.
NARROW = 16
# The first column of a line of help.
COLUMN = re.compile(r" +(\S+ {2,})?")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def show(rows: Rows) -> None:
    """Print rows in aligned columns. On a terminal, the last column is wrapped at the terminal's
    width; where long texts before it leave no room, it begins on the next line."""
    columns = max(map(len, rows), default=0)
    widths = [max((len(row[k]) for row in rows if k < len(row)), default=0) for k in range(columns)]
    width = shutil.get_terminal_size().columns if terminal.on_terminal(sys.stdout) else None
    if width is not None and columns > 1:
        room = min(max(widths[-1], NARROW), width // 4)
        missing = sum(widths[:-1]) + (columns - 1) * len(GAP) + room - width
        widths[-2] -= max(missing, 0)
    for row in rows:
        *first, last = row
        start = "".join(text.ljust(w) + GAP for text, w in zip(first, widths, strict=False))
        below = " " * sum(w + len(GAP) for w in widths[: len(first)])
        if width is None:
            lines = [last]
        else:
            lines = textwrap.wrap(last, max(width - len(below), NARROW)) or [""]
        if len(start) > len(below):
            lines = ["", *lines]
        for k, line in enumerate(lines):
            terminal.say(f"{start if k == 0 else below}{line}".rstrip())


def wrapped(text: str) -> str:
    """A help text at the width of the terminal, with commands as the user starts them.

    The lines of a paragraph are joined, except for indented lines: those keep their place, and the
    rest of a line such as `  NAME  TEXT` is below its text.
    """
    width = max(shutil.get_terminal_size().columns, 2 * NARROW)
    joined = re.sub(r"(?<=\S)\n(?=[^\s])", " ", commands.shown(text))
    lines = []
    for line in joined.split("\n"):
        column = COLUMN.match(line)
        below = " " * len(column[0]) if column else ""
        folded = textwrap.wrap(
            line, width, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
        )
        lines += folded or [""]
    return "\n".join(lines)


def folded(usage: str) -> str:
    """A usage line at the width of the terminal, which is not broken between brackets. It loses
    tyro's colours, which would count as letters."""
    width = max(shutil.get_terminal_size().columns, 2 * NARROW)
    depth, kept = 0, ""
    for c in COLOUR.sub("", usage):
        depth += (c == "[") - (c == "]")
        kept += "\0" if c == " " and depth else c
    lines = textwrap.fill(
        kept, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return lines.replace("\0", " ")


def only_help(words: list[str], program: str, doc: str, most: int = 0) -> bool:
    """Whether a command that takes no flags was asked for help, which is printed.

    Args:
        words: the command line.
        program: the command's name.
        doc: description of the command.
        most: largest number of words that the command takes.

    Raises:
        ConfigError: a flag, or too many words.
    """
    if {"-h", "--help"} & {*words}:
        terminal.say(wrapped(doc))
        return True
    flags = [word for word in words if word.startswith("-")]
    if flags or len(words) > most:
        unknown = (flags or words[most:])[0]
        raise ConfigError(f"unknown word {unknown!r}; {program} --help says what is allowed")
    return False
