"""Links of the pages to what lies outside docs/, which a built page cannot follow.

In the repository they lead to a folder or a notebook; in the built pages a folder is its name, and
a notebook the page made of it. Files become downloads, as MyST has it.
"""

import re
from pathlib import Path
from typing import Any


def rewrite(app: Any, docname: str, source: list[str]) -> None:
    """Replace the links of one page before it is parsed."""
    if docname.startswith("generated/"):
        return
    folder = Path(app.env.doc2path(docname)).parent

    def replaced(match: re.Match[str]) -> str:
        text, target = match.groups()
        notebook = re.fullmatch(r"(?:\.\./)+notebooks/(\w+)\.ipynb", target)
        if notebook:
            return f"[{text}](/generated/notebooks/{notebook[1]}.md)"
        return text if (folder / target).is_dir() else match[0]

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]*)\)", replaced, source[0])


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
