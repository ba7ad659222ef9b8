"""The registry of algorithms: a name, and the module that has its Config and make.

The modules of the package are imported when they are used; their names and their Configs are known
without (`ppo_jax.algorithms.configs`).
"""

import copy
import dataclasses
import functools
import importlib
import inspect
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ppo_jax.config.references as references
from ppo_jax.algorithms.configs import CONFIGS
from ppo_jax.config.options import Bounds, ConfigError, Field, did_you_mean, kind

if TYPE_CHECKING:
    ALGORITHMS: dict[str, ModuleType]
OPTION_TYPES = (bool, int, float, str, Path)


def __getattr__(name: str) -> Any:
    """`ALGORITHMS`, the dictionary from names to modules, made when it is first used; and the
    modules themselves."""
    if name in CONFIGS:
        return importlib.import_module(f"{__name__}.{name}")
    if name != "ALGORITHMS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = {key: importlib.import_module(f"{__name__}.{key}") for key in CONFIGS}
    globals()["ALGORITHMS"] = found
    return found


def config_of(name: str) -> Any:
    """The Config of the algorithm of a name, without importing the package's own algorithms.

    Args:
        name: as for `get`.

    Raises:
        ConfigError: as for `get`.
    """
    known = sys.modules[__name__].__dict__.get("ALGORITHMS", {})
    if name in CONFIGS and name not in known:
        return CONFIGS[name]
    return get(name).Config


def get(name: str) -> Any:
    """The algorithm of a name: a module or an object with Config and make.

    Args:
        name: in ALGORITHMS, registered by an installed package (entry-point group
            `ppo_jax.algorithms`), or a reference: `package.module:Name` or a module by its name.

    Raises:
        ConfigError: an unknown name, with the nearest ones; a module that cannot be imported; or
            something that is not an algorithm, and what it lacks.
    """
    package = sys.modules[__name__]
    names = package.__dict__.get("ALGORITHMS", CONFIGS)  # its modules are imported if need be
    if name in names:
        return package.ALGORITHMS[name]
    known = {*names, *references.registered("algorithm")}
    module = name.partition(":")[0]
    if name not in known and not references.is_text(name) and not references.findable(module):
        raise ConfigError(
            f"unknown algorithm {name!r}; {did_you_mean(name, sorted(known))} (and there is no "
            f"module {module!r} to import one from)"
        )
    found = references.resolve(name, "algorithm")
    for attribute in ("Config", "make"):
        if not hasattr(found, attribute):
            raise ConfigError(
                f"algorithm {name!r} is {_described(found)} and has no {attribute}; an algorithm "
                "is a module or an object with Config, a frozen dataclass of options, and "
                "make(policy, config) -> Algorithm"
            )
    options(found.Config, name)
    return found


def in_package(name: str) -> bool:
    """Whether a name is that of an algorithm of the package; nothing is imported to find out."""
    return name in sys.modules[__name__].__dict__.get("ALGORITHMS", CONFIGS)


def names_code(name: str) -> bool:
    """Whether a name makes the process import a module that is neither in the package nor
    registered by an installed one; nothing is imported to find out."""
    known = in_package(name) or references.is_text(name)
    return not known and name not in references.registered("algorithm")


@functools.lru_cache(maxsize=64)
def options(config: Any, name: str) -> tuple[Field, ...]:
    """The options that the Config of an algorithm describes.

    Its fields are made by `ppo_jax.config.options.option`, or are plain dataclass fields with a
    type and a default value, without a help text and without bounds.

    Args:
        config: the Config.
        name: of the algorithm, for messages.

    Raises:
        ConfigError: it is not a frozen dataclass, has a field that cannot be an option, or has no
            `gamma`, the discount factor, which rollouts need.
    """
    if not (inspect.isclass(config) and dataclasses.is_dataclass(config)):
        raise ConfigError(f"the Config of algorithm {name!r} is not a dataclass")
    if not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(
            f"the Config of algorithm {name!r} can be changed; make it "
            "@dataclasses.dataclass(frozen=True)"
        )
    types = typing.get_type_hints(config, include_extras=True)
    found = tuple(_option(field, types[field.name], name) for field in dataclasses.fields(config))
    if "gamma" not in {field.name for field in found}:
        raise ConfigError(
            f"the Config of algorithm {name!r} has no field gamma, the discount factor; rollouts "
            "need it"
        )
    return found


def _option(field: Field, annotation: Any, name: str) -> Field:
    """A field with its type as an object and with bounds."""
    field = copy.copy(field)
    field.type = annotation
    if "bounds" not in field.metadata:
        metadata = {"doc": "", "bounds": Bounds(None, None, False, None), **field.metadata}
        field.metadata = metadata  # type: ignore[assignment]
    if field.default is dataclasses.MISSING:
        raise ConfigError(
            f"the Config of algorithm {name!r} has a field {field.name!r} without a default value; "
            "an option has one"
        )
    if kind(field).base not in OPTION_TYPES:
        raise ConfigError(
            f"the Config of algorithm {name!r} has a field {field.name!r} of type {annotation}; an "
            "option is a bool, int, float, str or Path, a tuple of one of them, or None"
        )
    return field


def _described(found: Any) -> str:
    return f"module {found.__name__}" if isinstance(found, ModuleType) else f"{found!r:.60}"
