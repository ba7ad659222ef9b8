"""Lists on a terminal: a name and one line about it."""

import shutil
import sys

from ppo_jax.config import ConfigError
from ppo_jax.runs import terminal

Rows = list[tuple[str, ...]]
GAP = "  "


def show(rows: Rows) -> None:
    """Print rows in aligned columns; on a terminal, a line is cut at the terminal's width."""
    columns = max(map(len, rows), default=0)
    widths = [max((len(row[k]) for row in rows if k < len(row)), default=0) for k in range(columns)]
    width = shutil.get_terminal_size().columns if terminal.on_terminal(sys.stdout) else None
    for row in rows:
        line = GAP.join(text.ljust(w) for text, w in zip(row, widths, strict=False)).rstrip()
        terminal.say(line if width is None else line[:width])


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
        terminal.say(doc)
        return True
    flags = [word for word in words if word.startswith("-")]
    if flags or len(words) > most:
        unknown = (flags or words[most:])[0]
        raise ConfigError(f"unknown word {unknown!r}; {program} --help says what is allowed")
    return False
