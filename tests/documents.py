"""Access to the documentation for tests: its commands, its Python code and its links."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAMS = re.compile(
    r"(python3?|ppo-jax|pip|uv|\.venv/\S+|\.ci/\S+|sphinx-build|pytest|git|tensorboard)\b"
)


def documents() -> list[Path]:
    """All documents for readers; generated pages are omitted because they repeat these."""
    pages = [p for p in ROOT.glob("docs/**/*.md") if "generated" not in p.parts]
    return [*sorted(ROOT.glob("*.md")), *sorted(pages), *sorted(ROOT.glob("notebooks/*.ipynb"))]


def name(document: Path) -> str:
    """The text of a document, given its path in the repository."""
    return str(document.relative_to(ROOT))


def text(document: Path) -> str:
    """The Markdown text of a document; for a notebook, that of its cells."""
    if document.suffix == ".md":
        return document.read_text()
    cells = json.loads(document.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def commands(document: Path) -> list[str]:
    """Commands in indented and fenced blocks, with joined continuation lines and without
    comments."""
    body = re.sub(r"```(?:python|toml|json|text|\{).*?```", "", text(document), flags=re.S)
    lines = re.sub(r"\\\n\s*", "", body).splitlines()
    inside, found = False, []
    for line in lines:
        if line.startswith("```"):
            inside = not inside
        elif (inside or line.startswith("    ")) and PROGRAMS.match(line.strip()):
            found.append(re.sub(r"\s+#.*", "", line.strip()))
    return found


def inline_commands(document: Path) -> list[str]:
    """Commands in the running text, between backticks."""
    body = re.sub(r"```.*?```", "", text(document), flags=re.S).replace("\n", " ")
    return [" ".join(c.split()) for c in re.findall(r"`(python3? [^`]+)`", body)]


def python_blocks(document: Path) -> list[str]:
    """Blocks that are fenced as Python."""
    return re.findall(r"```python\n(.*?)```", text(document), re.S)


def files(document: Path) -> dict[str, str]:
    """Files that a page asks the reader to write: Python blocks that begin with a file name."""
    found = (re.match(r"# (\w+\.py)\n", block) for block in python_blocks(document))
    blocks = zip(found, python_blocks(document), strict=True)
    return {name[1]: block for name, block in blocks if name}


def run_python(document: Path) -> list[str]:
    """Run blocks in order and return the output that their comments state."""
    space: dict[str, object] = {}
    for block in python_blocks(document):
        exec(compile(block, name(document), "exec"), space)
    blocks = "".join(python_blocks(document))
    return re.findall(r"print\(.*\) +# (\(.*?\)|[\d.]+)", blocks)


def links(document: Path) -> list[str]:
    """Targets of links and images."""
    body = re.sub(r"```.*?```|`[^`\n]*`", "", text(document), flags=re.S)
    body = re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$", "", body, flags=re.S)
    pairs = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"|<(https?://[^>]+)>", body)
    return [next(filter(None, pair)) for pair in pairs]


def anchors(document: Path) -> set[str]:
    """The headings of a document as link fragments."""
    headings = re.findall(r"^#+ (.+)$", text(document), re.M)
    plain = (re.sub(r"[^\w\s-]", "", h.lower()).strip() for h in headings)
    return {re.sub(r"\s", "-", h) for h in plain}
