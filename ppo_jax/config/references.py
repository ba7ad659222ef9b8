"""Names of code that is not in the package, and the code behind them.

A reference is `package.module:Name`: a module that this process can import (the current directory
counts) and a name in it, or a bare `package.module`. It is never a path, so that a folder can name
code but never bring any. Who may name it is decided in `ppo_jax.runs.trust`; here it is imported.

An object that was handed over from Python and cannot be imported by name is known by a text in
angle brackets instead, which stands for it in this process alone.
"""

import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import os
import re
import secrets
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ppo_jax.config.options import ConfigError, did_you_mean

_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
# What a reference names -> the keyword by which the same is handed over from Python.
KEYWORDS = {"environment": "env", "policy": "policy", "algorithm": "algorithm"}
# The groups of entry points in which installed packages register names.
GROUPS = {what: f"ppo_jax.{group}" for what, group in (
    ("environment", "envs"), ("policy", "policies"), ("algorithm", "algorithms"),
)}  # fmt: skip


def _origin(package: str) -> str:
    """The file of an installed package, which is not imported to find it."""
    spec = importlib.util.find_spec(package)
    return (spec.origin if spec is not None else None) or "."


# Folders whose lines are not named where a line of the user's was wrong.
_LIBRARIES = tuple(
    str(Path(file or ".").parent) + os.sep
    for file in (str(Path(__file__).parent), *map(_origin, ("jax", "numpy")))
)
# Text -> the object that it stands for in this process.
_OBJECTS: dict[str, Any] = {}


def is_reference(text: str) -> bool:
    """Whether a text has the form `package.module:Name`."""
    return re.fullmatch(f"{_DOTTED}:{_DOTTED}", text) is not None


def load(reference: str, what: str) -> Any:
    """Import what a reference names.

    Args:
        reference: "package.module:Name", Name with dots for what is inside a class; or a module.
        what: "environment", "policy" or "algorithm", for messages.

    Returns:
        The object, or the module where no name is given.

    Raises:
        ConfigError: it is not a reference; its module is not found, fails while it is imported, or
            is another one than was named; or the module has no such name.
    """
    if not re.fullmatch(f"{_DOTTED}(?::{_DOTTED})?", reference):
        raise ConfigError(
            f"{what} {reference!r} is not a reference; write package.module:Name, a module as "
            "`import` names it (not a path) and a name in it"
        )
    module, _, name = reference.partition(":")
    if module.partition(".")[0] == "__main__":
        raise ConfigError(
            f"{what} {reference!r}: __main__ is another module in every process; put the code into "
            "a module of its own"
        )
    found: Any = _import(reference, module, what)
    _refuse_another(reference, module, what)
    for part in name.split(".") if name else ():
        if not hasattr(found, part):
            known = [n for n in dir(found) if not n.startswith("_")]
            raise ConfigError(
                f"{what} {reference!r}: module {module}, read from {_file(sys.modules[module])}, "
                f"has no {name}; {did_you_mean(part, known)}"
            )
        found = getattr(found, part)
    return found


def resolve(name: str, what: str) -> Any:
    """What a name stands for: an object from Python, what a package registered, or a reference.

    Args:
        name: as in a configuration.
        what: "environment", "policy" or "algorithm".

    Raises:
        ConfigError: it stands for nothing, or cannot be imported.
    """
    if is_text(name):
        return _given(name, what)
    return load(registered(what).get(name, name), what)


def findable(module: str) -> bool:
    """Whether there is a module of this name; nothing of it is imported, only its first part is
    looked for."""
    _prepare()
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def registered(what: str) -> dict[str, str]:
    """Name -> reference, of the names that installed packages register.

    What lies in the current directory is not installed: a folder registers nothing.

    Raises:
        ConfigError: two packages register one name for different things.
    """
    here = os.path.realpath("")
    places = (p for p in sys.path if p and os.path.realpath(p) != here)
    return _registered(GROUPS[what], tuple(places))


@functools.lru_cache(maxsize=16)
def _registered(group: str, path: tuple[str, ...]) -> dict[str, str]:
    """The entry points of a group; `path` is where packages are looked for."""
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    for package in importlib.metadata.distributions(path=[*path]):
        for point in package.entry_points.select(group=group):
            owner = package.metadata["Name"]
            reference = f"{point.module}:{point.attr}" if point.attr else point.module
            # Of one package that is installed in two places, the first counts, as for `import`.
            if owners.setdefault(point.name, owner) != owner:
                raise ConfigError(
                    f"two installed packages register {point.name!r} in {group}: "
                    f"{owners[point.name]} and {owner}; uninstall one, or use a reference"
                )
            found.setdefault(point.name, reference)
    return found


def name_of(obj: Any) -> str:
    """The name under which a configuration keeps an object.

    Returns:
        Its reference, if it can be imported by one; else a text that stands for it in this process
        alone. A string is returned as it is.
    """
    if isinstance(obj, str):
        return obj
    known = next((text for text, other in _OBJECTS.items() if other is obj), None)
    if known is not None and is_text(known):
        return known
    reference = reference_of(obj)
    if reference is not None:
        return reference
    label = getattr(obj, "__qualname__", getattr(obj, "__name__", type(obj).__qualname__))
    label = str(label).replace("<", "").replace(">", "")
    text = f"<{label} given from Python, {secrets.token_hex(3)}>"
    bind(text, obj)
    return text


def reference_of(obj: Any) -> str | None:
    """The reference that imports this very object, or an equal instance; None if there is none.

    A module, a class and a function have their own. An instance has that of its class if the class
    called without arguments makes one like it, for that is what loading the reference does.
    """
    if isinstance(obj, ModuleType):
        return obj.__name__ if _importable(obj.__name__, "", obj) else None
    named = inspect.isclass(obj) or inspect.isroutine(obj)
    source = obj if named else type(obj)
    module, name = getattr(source, "__module__", None), getattr(source, "__qualname__", "")
    if not module or not is_reference(f"{module}:{name}") or not _importable(module, name, source):
        return None
    return f"{module}:{name}" if named or _made_like(obj) else None


def is_text(name: str) -> bool:
    """Whether a name is a text that stands for an object from Python."""
    return name.startswith("<")


def bind(text: str, obj: Any) -> None:
    """Let a text stand for an object from here on."""
    _OBJECTS[text] = obj


def raised(error: BaseException) -> str:
    """An exception of the user's code in one line: its type, message, and where it was raised."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}{': ' if message else ''}{message}"
    where = "" if isinstance(error, SyntaxError) else place(error)  # its message has the place
    return f"{text} ({where})" if where else text


def place(error: BaseException) -> str:
    """The file and line of the user's code that raised, or "": the last one in the traceback that
    belongs neither to this package nor to the numerical libraries that it called."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")
    ]
    own = [f for f in frames if not f.filename.startswith(_LIBRARIES)]
    found = own or frames
    return f"{Path(found[-1].filename).name}, line {found[-1].lineno}" if found else ""


def _given(text: str, what: str) -> Any:
    if text not in _OBJECTS:
        raise ConfigError(
            f"{what} {text} is an object that has no name to import it by; hand it over again from "
            f"Python, {KEYWORDS[what]}=..."
        )
    return _OBJECTS[text]


def _prepare() -> None:
    """The current directory counts, also where a console script was started."""
    try:
        here = str(Path.cwd())
    except OSError:  # it was deleted
        return
    if not {"", here} & {*sys.path}:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the module may have been written a moment ago


def _import(reference: str, module: str, what: str) -> ModuleType:
    import jax

    if module not in sys.modules:
        _prepare()
    try:
        # Arrays that a module makes are its constants, also where a run is being traced.
        with jax.ensure_compile_time_eval():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module == missing or module.startswith(f"{missing}."):
            raise ConfigError(
                f"{what} {reference!r}: there is no module {missing}, neither in the current "
                f"directory nor among the installed packages{_similar(missing)}; start where the "
                "module is, or put its folder on PYTHONPATH"
            ) from error
        raise _failed(reference, module, what, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(reference, module, what, error) from error


def _failed(reference: str, module: str, what: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"{what} {reference!r}: importing {module} raised {raised(error)}; correct the module, or "
        "install what it needs"
    )


def _similar(module: str) -> str:
    """A hint at modules of the current directory."""
    parent, _, name = module.rpartition(".")
    folder = Path(*parent.split(".")) if parent else Path()
    found = [p.stem for p in folder.glob("*.py")] if folder.is_dir() else []
    hint = did_you_mean(name, found) if found else ""
    return f" ({hint})" if hint.startswith("did you mean") else ""


def _refuse_another(reference: str, module: str, what: str) -> None:
    """Refuse a module that hides the one of the same name in the current directory: one of an
    installed package or of Python itself, or one that was imported from elsewhere before."""
    top = module.partition(".")[0]
    try:
        spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd())])
    except OSError:
        return
    if spec is None or not spec.has_location or spec.origin is None:
        return
    file = getattr(sys.modules[top], "__file__", None)
    if file is None or os.path.realpath(file) != os.path.realpath(spec.origin):
        raise ConfigError(
            f"{what} {reference!r}: module {top} was imported from {file or 'Python itself'}, not "
            f"from {spec.origin} in the current directory; rename one of the two"
        )


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "Python itself"


def _importable(module: str, name: str, obj: Any) -> bool:
    """Whether another process would find this object by its module and name."""
    found: Any = sys.modules.get(module)
    if module == "__main__" or found is None:
        return False
    try:
        if importlib.util.find_spec(module) is None:
            return False
        for part in name.split(".") if name else ():
            found = getattr(found, part)
    except (ImportError, ValueError, AttributeError):
        return False
    return found is obj


def _made_like(obj: Any) -> bool:
    """Whether the class of an object, called without arguments, makes an equal one."""
    try:
        return _alike(obj, type(obj)())
    except Exception:
        return False


def _alike(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if hasattr(a, "__array__"):
        import numpy as np

        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    if type(a).__eq__ is not object.__eq__:
        return bool(a == b)
    return hasattr(a, "__dict__") and not callable(a) and _alike(vars(a), vars(b))
