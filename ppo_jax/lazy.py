"""Public names that a package imports when they are first used (PEP 562).

The command line must answer `--help` without importing JAX, which takes longer than all the rest.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def attach(package: str, modules: dict[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Make the function `__getattr__` of a package.

    Args:
        package: name of the package.
        modules: public names that each module of the package defines. A module that is listed
            with its own name is itself a public name.
    """
    where = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{where[name]}")
        found = module if where[name] == name else getattr(module, name)
        setattr(sys.modules[package], name, found)
        return found

    return find
