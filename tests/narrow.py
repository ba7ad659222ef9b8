"""A terminal of 80 columns: a command run behind a pseudo-terminal, and what its screen shows."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Sequence

COLUMNS, LINES = 80, 60
# Sequences that move, erase or colour; all that rich writes.
SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


class Screen:
    """The lines of a terminal of 80 columns, kept as a terminal keeps them.

    Args:
        watch: called with the lines after each line feed and at the end.
    """

    def __init__(self, watch: Callable[[list[str]], None] = lambda lines: None) -> None:
        self.rows, self.row, self.column, self.watch = [""], 0, 0, watch

    @property
    def lines(self) -> list[str]:
        """The lines without spaces at their ends."""
        return [row.rstrip() for row in self.rows]

    def feed(self, text: str) -> None:
        """Process all that was written to the terminal."""
        at = 0
        while at < len(text):
            found = SEQUENCE.match(text, at)
            if found:
                self._control(int(found[2] or 1) if found[2].isdigit() else 1, found)
                at = found.end()
                continue
            self._character(text[at])
            at += 1
        self.watch(self.lines)

    def _control(self, count: int, found: re.Match) -> None:
        letter = found[3]
        if letter == "A":
            self.row = max(0, self.row - count)
        elif letter == "K":
            self.rows[self.row] = "" if found[2] == "2" else self.rows[self.row][: self.column]
        elif letter not in "mhl":
            raise AssertionError(f"a sequence that this screen does not have: {found[0]!r}")

    def _character(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self.watch(self.lines)
            self._down()
        elif letter >= " ":
            if self.column == COLUMNS:
                self._down()
                self.column = 0
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + letter + row[self.column + 1 :]
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")


def run(words: Sequence[str], env: dict[str, str] | None = None) -> tuple[int, str]:
    """(exit code, all that was written) of a command whose streams are a terminal of 80 columns."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    unset = {"COLUMNS", "LINES", "NO_COLOR", "TERM"}
    inherited = {k: v for k, v in os.environ.items() if k not in unset}
    process = subprocess.Popen(
        words,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=inherited | {"TERM": "xterm-256color"} | (env or {}),
        close_fds=True,
    )
    os.close(follower)
    written = []
    try:
        while chunk := os.read(leader, 65536):
            written.append(chunk)
    except OSError:  # Linux reports the end of the terminal so
        pass
    os.close(leader)
    return process.wait(), b"".join(written).decode()
