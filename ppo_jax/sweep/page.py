"""report.html: one file with every figure and table in it."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo_jax.config.options import show

Row = dict[str, Any]
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th { position: sticky; top: 0; background: #fff }
img { max-width: 100% } figure { margin: 1.5rem 0 } pre { overflow-x: auto; background: #f6f6f6 }
tr:first-child td { font-weight: 600 }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document of parts of HTML."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def heading(words: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{html.escape(words)}</h{level}>"


def paragraph(words: str) -> str:
    """Text as it is."""
    return f"<p>{html.escape(words)}</p>"


def preformatted(words: str) -> str:
    """Text with its line ends."""
    return f"<pre>{html.escape(words)}</pre>"


def picture(title: str, path: Path) -> str:
    """A PNG, inside the document."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<figure>{heading(title, 3)}"
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}"></figure>'
    )


def table(rows: Sequence[Row]) -> str:
    """Rows with a header; columns that are empty throughout are left out."""
    names = _columns(rows)
    header = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(_text(r.get(n)))}</td>" for n in names) + "</tr>"
        for r in rows
    ]
    return f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def markdown(rows: Sequence[Row]) -> str:
    """The same table for pasting."""
    names = _columns(rows)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_text(r.get(n)) for n in names) + " |" for r in rows]
    return "\n".join(lines) + "\n"


def _columns(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [n for n in names if any(row.get(n) is not None for row in rows)]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return show(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
