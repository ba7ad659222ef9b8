"""A page for every public module, and docstrings in the form that Sphinx reads."""

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import ppo_jax

# Package -> what stands over its pages, in the order of the table of contents.
GROUPS = {
    "ppo_jax": "The core",
    "ppo_jax.algorithms": "Algorithms",
    "ppo_jax.networks": "Networks",
    "ppo_jax.envs": "Environments",
    "ppo_jax.sweep": "Sweeps",
    "ppo_jax.rlhf": "Language models",
}
PAGE = """# `{name}`

```{{eval-rst}}
.. automodule:: {name}
```
"""
PACKAGE_PAGE = """# `{name}`

```{{eval-rst}}
.. automodule:: {name}
   :no-members:

{exports}
```
"""
SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Source", "Yields:")


def modules() -> dict[str, list[str]]:
    """Heading -> the public modules under it, found by looking into the package."""
    found: dict[str, list[str]] = {heading: [] for heading in GROUPS.values()}
    found[GROUPS["ppo_jax"]].append("ppo_jax")
    for module in pkgutil.walk_packages(ppo_jax.__path__, "ppo_jax."):
        if "__main__" in module.name:
            continue
        home = module.name if module.ispkg else module.name.rpartition(".")[0]
        group = next((g for g in (home, home.rpartition(".")[0]) if g in GROUPS), "ppo_jax")
        found[GROUPS[group]].append(module.name)
    return {heading: names for heading, names in found.items() if names}


def write_pages(app: Any) -> None:
    """docs/generated/api: pages of automodule directives, rewritten only where they differ."""
    folder = Path(app.srcdir) / "generated/api"
    wanted = {}
    index = "# Modules\n\nFrom the docstrings; the shape letters are those of `ppo_jax.types`.\n"
    for heading, names in modules().items():
        index += f"\n```{{toctree}}\n:caption: {heading}\n:maxdepth: 1\n\n"
        index += "\n".join(names) + "\n```\n"
        wanted |= {f"{name}.md": page(name) for name in names}
    write_folder(folder, wanted | {"index.md": index})


def page(name: str) -> str:
    """The page of a module; that of a package lists what it exports, which is told elsewhere."""
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        return PAGE.format(name=name)
    exports = [
        f"* `{export} <{getattr(getattr(module, export), '__module__', name)}.{export}>`"
        for export in getattr(module, "__all__", ())
    ]
    return PACKAGE_PAGE.format(name=name, exports="\n".join(exports))


def write_folder(folder: Path, wanted: dict[str, str]) -> None:
    """Make the text files of a generated folder these and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def set_formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Paragraphs that are formulas keep their lines: they become literal blocks.

    A paragraph is one if it is not the first and its first line has the sign of an equation or an
    arrow with spaces around it and does not begin as a sentence or a section does.
    """
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    for i, paragraph in enumerate(paragraphs):
        if i > 0 and is_formula(paragraph):
            body = "\n".join(f"    {line}" for line in paragraph.splitlines())
            paragraphs[i] = f"::\n\n{body}"
        else:
            paragraphs[i] = escape(paragraph)
    lines[:] = [*"\n\n".join(paragraphs).split("\n"), ""]


def escape(text: str) -> str:
    """Stars, bars and letters after backticks as text, which they are in these docstrings."""
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!^)\*(?=[\w*])|\|", r"\\\g<0>", parts[i])
        if i and re.match(r"\w", parts[i]):
            parts[i] = "\\ " + parts[i]
    return "".join(parts)


def is_formula(paragraph: str) -> bool:
    """Whether a paragraph of a docstring is mathematics or code rather than a sentence."""
    if paragraph.startswith(SECTIONS) or paragraph.lstrip().startswith(("*", "-", "|", ":")):
        return False
    sign = re.search(r"\s(=|≈|←|->|→|<=|≥|↦)\s|^\w+\([^)]*\)$|\w\(\w+[=,]", paragraph)
    sentence = paragraph.rstrip().endswith(".") and re.match(r"[A-Z`][\w`.]*\s[a-z]", paragraph)
    return bool(sign) and not sentence


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what dataclasses and named tuples bring along."""
    if name == "replace" and "new values" in (getattr(obj, "__doc__", None) or ""):
        return True
    if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    return None


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", set_formulas, priority=400)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
