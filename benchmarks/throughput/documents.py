"""Writing of tables to documents, each between two comments with its name.

A test checks that the tables agree with the CSV files.
"""

import re
from collections.abc import Mapping
from pathlib import Path

# Document -> names of its tables.
PLACES = {
    "README.md": ("summary",),
    "docs/throughput.md": ("race", "cpu", "compile", "breakdown", "restart", "quality"),
}


def filled(text: str, tables: Mapping[str, str], names: tuple[str, ...]) -> str:
    """A document in which tables are written between their comments.

    Args:
        text: text of the document.
        tables: tables, name -> Markdown; a missing table leaves an empty space.
        names: names of the tables in the document.

    Raises:
        SystemExit: the document lacks the comments of a table.
    """
    for name in names:
        begin, end = f"<!-- throughput: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"the document must have exactly one pair of {begin} and {end}")
        table = tables.get(name, "").strip()
        found = f"{begin}\n\n{table}\n\n{end}" if table else f"{begin}\n{end}"
        text = pattern.sub(lambda match, found=found: found, text)
    return text


def write(root: Path, tables: Mapping[str, str]) -> None:
    """Write the tables to their documents.

    Args:
        root: root of the repository.
        tables: tables, name -> Markdown.

    Raises:
        SystemExit: a document lacks the comments of a table; then no document is written.
    """
    found = {
        root / name: filled((root / name).read_text(), tables, names)
        for name, names in PLACES.items()
    }
    for path, text in found.items():
        path.write_text(text)
