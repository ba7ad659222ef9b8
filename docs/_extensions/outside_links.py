"""Links from the pages to files outside docs/, which the built site does not contain.

In the repository such a link points to a source file, a notebook or a folder. In the built site a
link to a module of ppo_jax or to a notebook points to the page that is generated from it, a link to
another folder becomes plain text, and a link to another file becomes a download, as in MyST.
"""

import re
from pathlib import Path
from typing import Any


def rewrite(app: Any, docname: str, source: list[str]) -> None:
    """Replace the links of a page before the page is parsed."""
    if docname.startswith("generated/"):
        return
    root = Path(app.srcdir).parent
    folder = Path(app.env.doc2path(docname)).parent

    def replaced(match: re.Match[str]) -> str:
        text, target = match.groups()
        place = (folder / target).resolve()
        page = page_of(place.relative_to(root))
        if page:
            return f"[{text}](/generated/{page}.md)"
        return text if place.is_dir() else match[0]

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]*)\)", replaced, source[0])


def page_of(place: Path) -> str | None:
    """The name of the generated page of a module, a notebook, or a folder of these, or None."""
    name = ".".join(place.with_suffix("").parts)
    if place.parts[0] == "notebooks":
        return f"notebooks/{place.stem if place.suffix else 'index'}"
    if name == "ppo_jax":
        return "api/index"
    return f"api/{name}" if place.parts[0] == "ppo_jax" else None


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}
