"""A page for every module of the package, with a summary of its objects after its docstring.

Modules that users import are listed under the headings of GROUPS; all others are internal and are
listed apart.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ppo_jax

# Heading of the table of contents -> the public modules under it, in their order.
GROUPS: dict[str, tuple[str, ...]] = {
    "Train, evaluate and load": (
        "ppo_jax",
        "ppo_jax.train",
        "ppo_jax.experiment",
        "ppo_jax.evaluate",
        "ppo_jax.agent",
        "ppo_jax.config",
        "ppo_jax.config.train",
        "ppo_jax.config.schedules",
        "ppo_jax.config.presets",
    ),
    "Mathematics": (
        "ppo_jax.types",
        "ppo_jax.advantages",
        "ppo_jax.losses",
        "ppo_jax.value_distributions",
        "ppo_jax.distributions",
        "ppo_jax.continuous",
        "ppo_jax.divergences",
        "ppo_jax.normalization",
        "ppo_jax.optimizer",
        "ppo_jax.muon",
        "ppo_jax.sgd",
        "ppo_jax.rollout",
    ),
    "Algorithms": (
        "ppo_jax.algorithms",
        "ppo_jax.algorithms.hooks",
        "ppo_jax.algorithms.reinforce",
        "ppo_jax.algorithms.actor_critic",
        "ppo_jax.algorithms.a2c",
        "ppo_jax.algorithms.trpo",
        "ppo_jax.algorithms.ppo_kl",
        "ppo_jax.algorithms.ppo",
        "ppo_jax.algorithms.ewma",
        "ppo_jax.algorithms.rpo",
        "ppo_jax.algorithms.reppo",
        "ppo_jax.algorithms.soft_values",
    ),
    "Networks": (
        "ppo_jax.networks",
        "ppo_jax.networks.policy",
        "ppo_jax.networks.own",
        "ppo_jax.networks.convolutions",
        "ppo_jax.networks.layers",
        "ppo_jax.networks.heads",
        "ppo_jax.networks.continuous",
        "ppo_jax.networks.memory",
        "ppo_jax.networks.mingru",
        "ppo_jax.networks.gtrxl",
        "ppo_jax.networks.recurrent",
    ),
    "Environments": (
        "ppo_jax.envs",
        "ppo_jax.envs.protocol",
        "ppo_jax.envs.spaces",
        "ppo_jax.envs.registry",
        "ppo_jax.envs.vectorize",
        "ppo_jax.envs.stagger",
        "ppo_jax.envs.action_masks",
        "ppo_jax.envs.frame_stack",
        "ppo_jax.envs.check",
        "ppo_jax.envs.gymnax",
        "ppo_jax.envs.gymnasium",
    ),
    "Experiments and statistics": (
        "ppo_jax.sweep",
        "ppo_jax.sweep.run",
        "ppo_jax.sweep.results",
        "ppo_jax.analysis.statistics",
        "ppo_jax.analysis.plot",
    ),
    "Export": ("ppo_jax.export", "ppo_jax.export.interface", "ppo_jax.export.verify"),
    "Language models": (
        "ppo_jax.rlhf",
        "ppo_jax.rlhf.train",
        "ppo_jax.rlhf.algorithms",
        "ppo_jax.rlhf.supervised",
        "ppo_jax.rlhf.rewards",
        "ppo_jax.rlhf.decoder",
        "ppo_jax.rlhf.generate",
        "ppo_jax.rlhf.lora",
        "ppo_jax.rlhf.tokenizer",
        "ppo_jax.rlhf.data",
        "ppo_jax.rlhf.hf_io",
    ),
}
INDEX = """# Modules

These pages are made from the docstrings. The [public names](/public_names.md) have an example each.
The shape letters, such as [T, N], are defined in `ppo_jax.types`.
"""
INTERNAL = """
## Internal modules

These modules are documented for contributors. Their names and signatures may change in any release.
"""
PAGE = """# `{name}`

```{{eval-rst}}
.. automodule:: {name}
{options}```
"""
SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Source", "Yields:")


def all_modules() -> list[str]:
    """The names of all modules of the package."""
    names = (module.name for module in pkgutil.walk_packages(ppo_jax.__path__, "ppo_jax."))
    return ["ppo_jax", *(name for name in names if "__main__" not in name)]


def write_pages(app: Any) -> None:
    """Write docs/generated/api: an index, and a page for each module."""
    names = all_modules()
    public = {name for group in GROUPS.values() for name in group}
    if missing := sorted(public - {*names}):
        raise ValueError(f"api_pages.GROUPS lists modules that do not exist: {missing}")
    index = INDEX
    for heading, group in GROUPS.items():
        index += f"\n## {heading}\n\n{listing(group)}"
    index += INTERNAL + listing(name for name in names if name not in public)
    pages = {f"{name}.md": page(name) for name in names}
    write_folder(Path(app.srcdir) / "generated/api", pages | {"index.md": index})


def listing(names: Iterable[str]) -> str:
    """Modules with the first line of each docstring, and a hidden table of contents."""
    lines = {n: f"- [`{n}`]({n}.md): {first_line(importlib.import_module(n))}" for n in names}
    contents = "```{toctree}\n:hidden:\n:maxdepth: 1\n\n" + "\n".join(lines) + "\n```\n"
    return "\n".join(lines.values()) + "\n\n" + contents


def page(name: str) -> str:
    """The page of a module; that of a package documents no members, which have their own pages."""
    is_package = hasattr(importlib.import_module(name), "__path__")
    return PAGE.format(name=name, options="   :no-members:\n" if is_package else "")


def first_line(documented: Any) -> str:
    """The first sentence of a docstring: its first paragraph up to a full stop or colon."""
    paragraph = (inspect.getdoc(documented) or "").split("\n\n")[0]
    return re.split(r"(?<=[.])\s+(?=[A-Z`])", " ".join(paragraph.split()))[0]


def summary(module: Any) -> list[str]:
    """A list in reStructuredText: the name of each public object and the first line about it."""
    exported = getattr(module, "__all__", None)
    names = exported or [n for n in vars(module) if not n.startswith("_")]
    rows = []
    for name in names:
        found = getattr(module, name)
        home = getattr(found, "__module__", None)
        documented = inspect.isfunction(found) or inspect.isclass(found)
        if documented and found.__doc__ and (exported or home == module.__name__):
            rows.append(f"* `{name} <{home}.{name}>`: {escape(first_line(found))}")
    return [".. rubric:: Summary", "", *rows, ""] if len(rows) > 1 else []


def write_folder(folder: Path, wanted: dict[str, str]) -> None:
    """Write the Markdown files of a generated folder and delete all other Markdown files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def set_formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make literal blocks of paragraphs that are formulas; add the summary to a module's docstring.

    A paragraph is a formula if it is not the first one, contains an equals sign, a comparison or an
    arrow between spaces, and does not begin like a sentence or a section.
    """
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    for i, paragraph in enumerate(paragraphs):
        if i > 0 and is_formula(paragraph):
            body = "\n".join(f"    {line}" for line in paragraph.splitlines())
            paragraphs[i] = f"::\n\n{body}"
        else:
            paragraphs[i] = escape(paragraph)
    lines[:] = [*"\n\n".join(paragraphs).split("\n"), ""]
    if what == "module":
        lines += summary(obj)


def escape(text: str) -> str:
    """Escape stars, bars and letters after backticks, which are plain text in these docstrings."""
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!^)\*(?=[\w*])|\|", r"\\\g<0>", parts[i])
        if i and re.match(r"\w", parts[i]):
            parts[i] = "\\ " + parts[i]
    return "".join(parts)


def is_formula(paragraph: str) -> bool:
    """Whether a paragraph of a docstring is a formula or code and not a sentence."""
    if paragraph.startswith(SECTIONS) or paragraph.lstrip().startswith(("*", "-", "|", ":")):
        return False
    sign = re.search(r"\s(=|≈|←|->|→|<=|≥|↦)\s|^\w+\([^)]*\)$|\w\(\w+[=,]", paragraph)
    sentence = paragraph.rstrip().endswith(".") and re.match(r"[A-Z`][\w`.]*\s[a-z]", paragraph)
    return bool(sign) and not sentence


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out the members that dataclasses and named tuples generate."""
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
