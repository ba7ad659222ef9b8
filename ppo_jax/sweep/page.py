"""report.html: a single file that contains every figure and table of a sweep."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

STYLE = """
:root { color-scheme: light dark;
  --ink: #26262b; --ground: #ffffff; --soft: #f4f4f1; --line: #d0d0ca }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e2; --ground: #1b1b1e; --soft: #2a2a2e; --line: #4a4a50 }
}
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--ground) }
h1 { line-height: 1.2 } .table { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px; white-space: nowrap }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line) }
th { vertical-align: bottom; white-space: normal }
.best tbody tr:first-child td { font-weight: 600 }
img { max-width: 100%; height: auto; border-radius: 4px } figure { margin: 1.5rem 0 }
figcaption { font-size: 14px } a { color: inherit }
summary { cursor: pointer; padding: .3rem 0 }
pre { overflow-x: auto; background: var(--soft); padding: .8rem; font-size: 13px }
button { font: inherit; font-size: 14px; padding: .2rem .8rem; cursor: pointer }
"""
# Browsers that refuse the clipboard to a local file still copy a selection.
SCRIPT = """
for (const button of document.querySelectorAll("button.copy")) {
  button.onclick = async () => {
    const text = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch (error) {
      getSelection().selectAllChildren(text);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
}
"""
TYPES = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document.

    Args:
        title: title of the document.
        parts: its content, HTML.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def heading(words: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{html.escape(words)}</h{level}>"


def paragraph(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(words)}</p>"


def copyable(name: str, text: str) -> str:
    """Text that unfolds, with a button that copies it."""
    return (
        f"<details><summary>{html.escape(name)}</summary>"
        f'<button type="button" class="copy">Copy</button><pre>{html.escape(text)}</pre></details>'
    )


def picture(title: str, path: Path) -> str:
    """A figure inside the document, with its other formats to download.

    Args:
        title: title of the figure.
        path: PNG file; PDF and SVG files of the same name are beside it, if there are any.
    """
    others = [path.with_suffix(f".{kind}") for kind in ("pdf", "svg")]
    links = [
        f'<a download="{html.escape(p.name)}" href="{_data(p)}">{p.suffix[1:].upper()}</a>'
        for p in others
        if p.is_file()
    ]
    caption = f"<figcaption>Download as {' or '.join(links)}</figcaption>" if links else ""
    return (
        f"<figure>{heading(title, 3)}"
        f'<img alt="{html.escape(title)}" src="{_data(path)}">{caption}</figure>'
    )


def _data(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{TYPES[path.suffix[1:]]};base64,{content}"
