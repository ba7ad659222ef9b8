"""Pages of the notebooks: text, code, and the outputs that were committed with them."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from api_pages import write_folder


def write_pages(app: Any) -> None:
    """Write docs/generated/notebooks: an index, and a page for each notebook, quickstart first."""
    folder = Path(app.srcdir) / "generated/notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    found = (Path(app.srcdir).parent / "notebooks").glob("*.ipynb")
    sources = sorted(found, key=lambda path: (path.stem != "quickstart", path.stem))
    pages = {f"{path.stem}.md": page(path, folder) for path in sources}
    index = "# Tutorials\n\nNotebooks with text, code and output. The tests run every notebook.\n"
    index += "\n```{toctree}\n:maxdepth: 1\n\n" + "\n".join(p.stem for p in sources) + "\n```\n"
    write_folder(folder, pages | {"index.md": index})


def page(path: Path, folder: Path) -> str:
    """The page of a notebook in Markdown; its images are written to the same folder."""
    parts = []
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(linked(source))
            continue
        parts.append(f"```python\n{source}\n```")
        for i, output in enumerate(cell.get("outputs", [])):
            parts.append(shown(output, folder, f"{path.stem}-{number}-{i}"))
    parts.append(
        f"The notebook itself: {{download}}`{path.name} <../../../notebooks/{path.name}>`."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def linked(text: str) -> str:
    """Rewrite links to other notebooks and to pages for a page of the documentation."""
    text = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", text)
    return re.sub(r"\]\(\.\./docs/", "](/", text)


def shown(output: dict[str, Any], folder: Path, name: str) -> str:
    """The Markdown of an output: an image if it has one, otherwise its text."""
    data = output.get("data", {})
    for kind in ("png", "gif"):
        if f"image/{kind}" in data:
            picture = base64.b64decode("".join(data[f"image/{kind}"]))
            (folder / f"{name}.{kind}").write_bytes(picture)
            return f"![the figure that the code above draws]({name}.{kind})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
