"""Tables in documents, between two comments that name them; a test holds them against the CSVs."""

import re
from collections.abc import Mapping
from pathlib import Path

# Document -> the tables it has.
PLACES = {
    "README.md": ("summary",),
    "docs/throughput.md": ("race", "cpu", "compile", "breakdown", "restart", "quality"),
}


def filled(text: str, tables: Mapping[str, str], names: tuple[str, ...]) -> str:
    """A document with these tables between their comments; a table without rows leaves nothing.

    Args:
        text: of the document.
        tables: name -> Markdown.
        names: of those it has.

    Raises:
        SystemExit: the document lacks the comments of one of them.
    """
    for name in names:
        begin, end = f"<!-- throughput: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"the document has no single pair of {begin} and {end}")
        table = tables.get(name, "").strip()
        found = f"{begin}\n\n{table}\n\n{end}" if table else f"{begin}\n{end}"
        text = pattern.sub(lambda match, found=found: found, text)
    return text


def write(root: Path, tables: Mapping[str, str]) -> None:
    """The tables into their documents.

    Args:
        root: of the repository.
        tables: name -> Markdown.

    Raises:
        SystemExit: as for `filled`; then no document is written.
    """
    found = {
        root / name: filled((root / name).read_text(), tables, names)
        for name, names in PLACES.items()
    }
    for path, text in found.items():
        path.write_text(text)
