"""Public names that a package imports when they are first used (PEP 562).

The command line must answer `--help` without importing JAX, which takes longer than all the rest.
"""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from typing import Any


def attach(
    package: str, modules: dict[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the functions `__getattr__` and `__dir__` of a package.

    Modules of the package that are not listed are imported at first access as well, so that
    `ppo_jax.envs.make` needs only `import ppo_jax`.

    Args:
        package: name of the package.
        modules: public names that each module of the package defines. A module that is listed
            with its own name is itself a public name.
    """
    where = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name in where:
            module = importlib.import_module(f"{package}.{where[name]}")
            found = module if where[name] == name else getattr(module, name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            found = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        module = sys.modules[package]
        parts = {m.name for m in pkgutil.iter_modules(module.__path__) if m.name[0] != "_"}
        return sorted({*vars(module), *where, *parts})

    return find, names
