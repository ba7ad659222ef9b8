"""References: names of code outside the package, and the code that they name.

A reference is `package.module:Name`: a module that this process can import, also from the current
directory, and a name in it; or a module alone, `package.module`. It is never a path, so that a
folder can name code but cannot contain it. The module `ppo_jax.runs.trust` decides which files may
name code; this module imports it.

An object that is passed from Python and cannot be imported by name is represented by a text in
angle brackets, which is valid in this process only.
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
# What a reference names -> the keyword argument with which Python code passes the same.
# Names of policies in Stable-Baselines3.
THEIRS = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy", "MlpLstmPolicy", "CnnLstmPolicy")
KEYWORDS = {"environment": "env", "policy": "policy", "algorithm": "algorithm"}
# The groups of entry points in which installed packages register names.
GROUPS = {what: f"ppo_jax.{group}" for what, group in (
    ("environment", "envs"), ("policy", "policies"), ("algorithm", "algorithms"),
)}  # fmt: skip


def _origin(package: str) -> str:
    """The file of an installed package, which is not imported to find it."""
    spec = importlib.util.find_spec(package)
    return (spec.origin if spec is not None else None) or "."


# Folders of libraries. An error message names a line of the user's code and not one of theirs.
_LIBRARIES = tuple(
    str(Path(file or ".").parent) + os.sep
    for file in (str(Path(__file__).parent), *map(_origin, ("jax", "numpy")))
)
# Text in angle brackets -> the object that it represents in this process.
_OBJECTS: dict[str, Any] = {}


def is_reference(text: str) -> bool:
    """Whether a text has the form `package.module:Name`."""
    return re.fullmatch(f"{_DOTTED}:{_DOTTED}", text) is not None


def refuse_file(name: str, what: str = "") -> None:
    """Refuse a reference that names a file instead of a module.

    Args:
        name: the reference.
        what: the option or the kind of object, for the message.

    Raises:
        ConfigError: the reference names a file; the message states the reference to write.
    """
    file, colon, part = name.partition(":")
    if file.endswith(".py") and colon and not is_text(name):
        module = file.removesuffix(".py").strip("./").replace("/", ".")
        given = f"{what} {name!r}".lstrip()
        raise ConfigError(f"{given} names a file; name its module: write {module}:{part}")


def check_policy(name: str | None) -> None:
    """Refuse the name of a policy of Stable-Baselines3. Nothing is imported.

    Raises:
        ConfigError: the name is one of theirs; the message names our options of networks.
    """
    if name in THEIRS and not findable(name):
        raise ConfigError(
            f"policy {name!r} is a name of Stable-Baselines3; leave --policy out: --network and "
            "--hidden describe the network"
        )


def load(reference: str, what: str) -> Any:
    """Import what a reference names.

    Args:
        reference: "package.module:Name", or a module. Name may have dots, for a name in a class.
        what: "environment", "policy" or "algorithm", for messages.

    Returns:
        The object, or the module where no name is given.

    Raises:
        ConfigError: the text is not a reference; the module is not found, raises an error while it
            is imported, or is not the one in the current directory; or it has no such name.
    """
    refuse_file(reference, what)
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
    """The object of a name: one passed from Python, one registered by a package, or a reference.

    Args:
        name: a name as a configuration holds it.
        what: "environment", "policy" or "algorithm".

    Raises:
        ConfigError: the name is unknown, or cannot be imported.
    """
    if is_text(name):
        return _given(name, what)
    return load(registered(what).get(name, name), what)


def findable(module: str) -> bool:
    """Whether the first part of a module's name can be found; the module is not imported."""
    _prepare()
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def registered(what: str) -> dict[str, str]:
    """Name -> reference, for the names that installed packages register.

    The current directory does not count as an installed package.

    Raises:
        ConfigError: two packages register the same name.
    """
    here = os.path.realpath("")
    places = (p for p in sys.path if p and os.path.realpath(p) != here)
    return _registered(GROUPS[what], tuple(places))


@functools.lru_cache(maxsize=16)
def _registered(group: str, path: tuple[str, ...]) -> dict[str, str]:
    """The entry points of a group, in the packages that `path` contains."""
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    for package in importlib.metadata.distributions(path=[*path]):
        for point in package.entry_points.select(group=group):
            owner = package.metadata["Name"]
            reference = f"{point.module}:{point.attr}" if point.attr else point.module
            # A package may be installed in two places; the first one counts, as for `import`.
            if owners.setdefault(point.name, owner) != owner:
                raise ConfigError(
                    f"two installed packages register {point.name!r} in {group}: "
                    f"{owners[point.name]} and {owner}; uninstall one, or use a reference"
                )
            found.setdefault(point.name, reference)
    return found


def name_of(obj: Any) -> str:
    """The name under which a configuration holds an object.

    Returns:
        The reference of the object, if there is one; otherwise a text that represents the object in
        this process. A string is returned unchanged.
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
    """The reference that imports this object, or an equal instance; None if there is none.

    Modules, classes and functions have references of their own. An instance has the reference of
    its class if the class, called without arguments, makes an equal instance: loading the reference
    does the same.
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
    """Whether a name is a text in angle brackets, which represents an object from Python."""
    return name.startswith("<")


def bind(text: str, obj: Any) -> None:
    """Register an object that a text represents from now on."""
    _OBJECTS[text] = obj


def raised(error: BaseException) -> str:
    """An exception of the user's code in one line: its type, message, and where it was raised."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}{': ' if message else ''}{message}"
    where = "" if isinstance(error, SyntaxError) else place(error)  # its message has the place
    return f"{text} ({where})" if where else text


def place(error: BaseException) -> str:
    """The file and line of the user's code that raised an error, or "".

    It is the last line in the traceback that belongs neither to this package nor to a numerical
    library.
    """
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")
    ]
    own = [f for f in frames if not f.filename.startswith(_LIBRARIES)]
    found = own or frames
    return f"{Path(found[-1].filename).name}, line {found[-1].lineno}" if found else ""


def _given(text: str, what: str) -> Any:
    if text not in _OBJECTS:
        raise ConfigError(
            f"{what} {text} is an object that has no name to import it by; pass it again from "
            f"Python, {KEYWORDS[what]}=..."
        )
    return _OBJECTS[text]


def _prepare() -> None:
    """Make modules of the current directory importable, also from a console script."""
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
        # Arrays that a module creates are constants, also if a run is being traced.
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
    """A hint that lists similar modules of the current directory."""
    parent, _, name = module.rpartition(".")
    folder = Path(*parent.split(".")) if parent else Path()
    found = [p.stem for p in folder.glob("*.py")] if folder.is_dir() else []
    hint = did_you_mean(name, found) if found else ""
    return f" ({hint})" if hint.startswith("did you mean") else ""


def _refuse_another(reference: str, module: str, what: str) -> None:
    """Refuse a module that hides a module of the same name in the current directory: a module of an
    installed package or of Python, or one that was imported from another folder before."""
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
    """Whether another process could import this object by its module and name."""
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
    """Whether the class of an object, called without arguments, makes an equal object."""
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
