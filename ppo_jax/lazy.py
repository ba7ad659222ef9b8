"""Public names that a package imports when they are first used (PEP 562).

The command line must answer `--help` without importing JAX, which takes longer than all the rest.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def attach(package: str, modules: dict[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """The function `__getattr__` of a package.

    Args:
        package: the package's name.
        modules: module in the package -> the public names that it defines. A module that is listed
            with its own name stands for itself.
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
