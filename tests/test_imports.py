"""The architecture: allowed imports between modules, and the cost of importing the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import ppo_jax
from ppo_jax.envs.registry import SUITES

ROOT = Path(ppo_jax.__file__).parent
# Data flows from left to right; a module imports only from layers to the left of its own.
LAYERS = [
    {
        "analysis.style",
        "backend",
        "config.options",
        "config.references",
        "guard",
        "lazy",
        "packed",
        "parallel",
        "shapes",
        "types",
        "watch",
    },
    {"suites"},
    {
        "distributions",
        "envs",
        "advantages",
        "divergences",
        "losses",
        "normalization",
        "muon",
        "optimizer",
        "sgd",
        "precision",
        "value_distributions",
    },
    {"continuous", "held_noise"},
    {"networks", "episodes", "rollout", "algorithms"},
    {"config"},
    {"train"},
    {"evaluate"},
    {"runs"},
    {"agent"},
    {"experiment"},
    {"analysis"},
    {"export", "sweep", "rlhf", "zoo"},
    {"cli"},
]
# Modules of `config` that other modules may import, such as "config.options".
FOUNDATION = {
    "commands",
    "errors",
    "foreign",
    "installation",
    "options",
    "schedules",
    "standard",
    "traced",
}
# Modules that define public names or start a command.
OUTSIDE = {"__init__", "__main__", "plot"}
# Modules with the same name may import each other; in the first layers, some import a neighbour.
NEIGHBOURS = {
    "evaluate": {"experiment"},  # when it is called as `ppo_jax.evaluate`
    "config.references": {"config.options"},
    "guard": {"backend", "parallel", "types"},
    "packed": {"types"},
    "parallel": {"types"},
    "watch": {"parallel"},
    "losses": {"distributions", "divergences", "value_distributions"},
    "optimizer": {"losses", "muon"},
    "sgd": {"losses", "optimizer"},
    "networks": {"distributions", "envs"},
    "rollout": {"episodes", "networks"},
}
ALGORITHM_IMPORTS = {
    "advantages",
    "algorithms",
    "losses",
    "config.options",
    "optimizer",
    "parallel",
    "sgd",
    "types",
    "distributions",
    "value_distributions",
}


def imports_of(path: Path) -> set[str]:
    """First-level ppo_jax modules imported by a file, at its top level or in functions; lines under
    `if __name__ == "__main__"` start a program and do not count."""
    tree = ast.parse(path.read_text())
    tree.body = [
        n for n in tree.body if not (isinstance(n, ast.If) and "__main__" in ast.unparse(n.test))
    ]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ppo_jax":
            parts = node.module.split(".")[1:]
            # `from ppo_jax.config import schedules` refers to the module `config.schedules`.
            names = [[*parts, alias.name] for alias in node.names]
            found |= {layer_of(name) for name in names}
        elif isinstance(node, ast.Import):
            parts = [a.name.split(".")[1:] for a in node.names if a.name.startswith("ppo_jax.")]
            found |= {layer_of(name) for name in parts}
    return found


def layer_of(parts: Sequence[str]) -> str:
    """The name of a module in LAYERS: the first part of its path, except for the options with which
    all modules describe themselves, the references, and the style of figures, which imports no
    other module of the package."""
    if tuple(parts[:2]) in {("config", "references"), ("analysis", "style")}:
        return ".".join(parts[:2])
    foundation = parts[0] == "config" and parts[1:2] and parts[1] in FOUNDATION
    return "config.options" if foundation else parts[0]


def module_of(path: Path) -> str:
    return layer_of(path.relative_to(ROOT).with_suffix("").parts)


def test_dependencies_follow_the_data():
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for path in ROOT.rglob("*.py"):
        module = module_of(path)
        if module in OUTSIDE:
            continue
        assert module in rank, f"{module} is in no layer"
        for imported in imports_of(path) - NEIGHBOURS.get(module, set()) - {module}:
            assert rank[imported] < rank[module], f"{path.name} imports {imported}"


def test_an_algorithm_knows_only_the_mathematics():
    for path in (ROOT / "algorithms").glob("*.py"):
        if path.name != "__init__.py":
            assert imports_of(path) <= ALGORITHM_IMPORTS, path.name


def test_only_the_registry_names_a_suite():
    """Core modules find suites through the registry's table, so that a new suite does not change
    them; the other modules in envs are suites and single environments."""
    suites = {name.removeprefix("ppo_jax.") for name in SUITES.values()}
    core = {"__init__", "protocol", "registry", "spaces", "vectorize", "host", "host_spaces"}
    for path in ROOT.rglob("*.py"):
        if path.parent.name != "envs" or path.stem in core:
            assert not full_imports_of(path) & suites, path


def full_imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, by their names below ppo_jax."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("ppo_jax.") for name in found}


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_plotting_libraries_are_not_imported_before_they_are_needed():
    loaded = modules_after(
        "import ppo_jax.cli, ppo_jax.runs.loop, ppo_jax.envs; ppo_jax.envs.make('CartPole-v1')"
    )
    assert "gymnax" in loaded
    assert not loaded & {"matplotlib", "pandas", "seaborn", "scipy", "IPython", "tensorboardX"}


def test_the_library_does_not_import_the_command_line():
    loaded = modules_after("import ppo_jax")
    assert not loaded & {
        "tyro",
        "gymnax",
        "ppo_jax.runs.loop",
        "ppo_jax.runs.checkpoint",
        "ppo_jax.agent",
    }
    loaded = modules_after("import ppo_jax.sweep")
    assert not loaded & {"tyro", "matplotlib", "scipy.stats", "ppo_jax.cli"}


def test_deferred_plotting_still_works():
    """gymnax draws FourRooms with matplotlib, which it does not import when the package is
    imported."""
    modules_after(
        "import jax, ppo_jax.envs as e; env = e.make('FourRooms-misc'); "
        "e.render(env, env.reset(jax.random.key(0), env.params)[1]); "
        "import matplotlib.pyplot as plt; assert plt.figure is not None"
    )


def test_public_definitions_have_docstrings():
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


# Formulas whose arguments are the symbols of their papers; their signatures are public and fixed.
FORMULAS = {"gae", "k_step_advantages", "adaptive_kl"}


def functions() -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """(file, function, whether it is a method) for every function of the package."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        methods = {id(node) for kind in classes for node in kind.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
                yield str(path.relative_to(ROOT)), node, id(node) in methods and not static


def test_functions_stay_short():
    for file, node, _ in functions():
        body = node.body[1:] if ast.get_docstring(node) else node.body
        first = body[0].lineno if body else node.lineno
        assert node.end_lineno - first < 45, f"{file}: {node.name}"


def test_functions_have_at_most_four_positional_parameters():
    for file, node, is_method in functions():
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)][is_method:]
        assert len(names) <= 4 or node.name in FORMULAS, f"{file}: {node.name}"
