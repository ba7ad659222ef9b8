"""`ppo-jax benchmark [NAME ...]`: the benchmarks of the repository, `python -m benchmarks.NAME`."""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import NoReturn

from ppo_jax.cli import listing
from ppo_jax.cli.errors import exit_without_device
from ppo_jax.config import ConfigError
from ppo_jax.config.errors import did_you_mean
from ppo_jax.runs import terminal

PROGRAM = "ppo-jax benchmark"
DOC = f"""usage: {PROGRAM} [NAME ...]

List the benchmarks of the repository, or run one: `{PROGRAM} NAME ...` is the same as
`python -m benchmarks.NAME ...`. The benchmarks are in the repository and not in the installed
package, so start the command in the repository's folder."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax benchmark`."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and not words[0].startswith("-"):
        exit_without_device(lambda: _run(words[0], words[1:]))
    exit_without_device(lambda: _list(words))


def _list(words: list[str]) -> int:
    if listing.only_help(words, PROGRAM, DOC):
        return 0
    rows: listing.Rows = [(name, _first_line(path)) for name, path in _benchmarks().items()]
    listing.show(rows)
    terminal.say(listing.wrapped(f"\n`{PROGRAM} NAME --help` describes a benchmark."))
    return 0


def _run(name: str, words: list[str]) -> int:
    known = _benchmarks()
    if name not in known:
        raise ConfigError(f"unknown benchmark {name!r}; {did_you_mean(name, known)}")
    sys.argv = [str(known[name]), *words]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    return 0


def _benchmarks() -> dict[str, Path]:
    """Name -> file of the benchmarks that can be run.

    Raises:
        ConfigError: the folder of the benchmarks is not here.
    """
    if not {"", str(Path.cwd())} & {*sys.path}:
        sys.path.insert(0, str(Path.cwd()))
    spec = importlib.util.find_spec("benchmarks")
    places = [] if spec is None else [*(spec.submodule_search_locations or [])]
    found = {p.stem: p for place in places for p in Path(place).glob("*.py")}
    found |= {p.parent.name: p for place in places for p in Path(place).glob("*/__main__.py")}
    found |= {
        f"{p.parent.name}.{p.stem}": p
        for place in places
        for p in Path(place).glob("*/*.py")
        # A package with a command of its own starts its modules itself, as it does workers.
        if p.stem != "worker" and not p.with_name("__main__.py").exists()
    }
    runnable = {n: p for n, p in found.items() if "__main__" in p.name + p.read_text("utf-8")}
    if "throughput" not in runnable:
        raise ConfigError(
            "the benchmarks are in the repository of ppo_jax, not in the installed package; start "
            "this command in the repository's folder"
        )
    return dict(sorted(runnable.items()))


def _first_line(path: Path) -> str:
    """The first sentence of the docstring of a benchmark, or of the package it belongs to."""
    package = path.with_name("__init__.py")
    for file in (package, path) if path.name == "__main__.py" else (path,):
        doc = ast.get_docstring(ast.parse(file.read_text("utf-8"))) if file.exists() else None
        if doc:
            return doc.partition("\n\n")[0].replace("\n", " ")
    return ""
