"""The registry of algorithms: names, and the modules with their Config and make.

Modules of the package are imported when they are used. Their names and their Configs are available
without importing them (`ppo_jax.algorithms.configs`).
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
# Well-known algorithms that are not on-policy.
ABSENT = ("sac", "td3", "dqn", "ddpg", "dpo")
OPTION_TYPES = (bool, int, float, str, Path)


def __getattr__(name: str) -> Any:
    """Import the modules of the package at first use: `ALGORITHMS`, the dictionary from names to
    modules, and each module by its name."""
    if name in CONFIGS:
        return importlib.import_module(f"{__name__}.{name}")
    if name != "ALGORITHMS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = {key: importlib.import_module(f"{__name__}.{key}") for key in CONFIGS}
    globals()["ALGORITHMS"] = found
    return found


def __dir__() -> list[str]:
    """The names of the module, with those that are imported at first use."""
    return sorted({*globals(), *CONFIGS, "ALGORITHMS"})


def config_of(name: str) -> Any:
    """The Config of the algorithm with a given name, without importing the package's algorithms.

    Args:
        name: name of the algorithm, as for `get`.

    Raises:
        ConfigError: the same as for `get`.
    """
    known = sys.modules[__name__].__dict__.get("ALGORITHMS", {})
    if name in CONFIGS and name not in known:
        return CONFIGS[name]
    return get(name).Config


def get(name: str) -> Any:
    """The algorithm with a given name: a module or an object with Config and make.

    Args:
        name: name in ALGORITHMS, name registered by an installed package (entry-point group
            `ppo_jax.algorithms`), or reference: `package.module:Name` or the name of a module.

    Raises:
        ConfigError: if the name is unknown, the module cannot be imported, or the object is not an
            algorithm.
    """
    package = sys.modules[__name__]
    names = package.__dict__.get("ALGORITHMS", CONFIGS)  # modules are imported below
    if name in names:
        return package.ALGORITHMS[name]
    known = {*names, *references.registered("algorithm")}
    module = name.partition(":")[0]
    references.refuse_file(name, "algorithm")
    if name.lower() in ABSENT and name not in known and not references.findable(module):
        raise ConfigError(
            f"algorithm {name!r} is not in this library, which has on-policy algorithms: "
            f"{', '.join(CONFIGS)}"
        )
    if name not in known and not references.is_text(name) and not references.findable(module):
        hint = did_you_mean(name, sorted(known), 0.7)
        raise ConfigError(
            f"unknown algorithm {name!r}; {hint} (and there is no "
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
    """Whether the package has an algorithm with this name. Nothing is imported for this check."""
    return name in sys.modules[__name__].__dict__.get("ALGORITHMS", CONFIGS)


def names_code(name: str) -> bool:
    """Whether a name refers to a module that is neither in the package nor registered by an
    installed package. Nothing is imported for this check."""
    known = in_package(name) or references.is_text(name)
    return not known and name not in references.registered("algorithm")


@functools.lru_cache(maxsize=64)
def options(config: Any, name: str) -> tuple[Field, ...]:
    """The options that the Config of an algorithm defines.

    Its fields are made by `ppo_jax.config.options.option`, or are plain dataclass fields with a
    type and a default value, without a help text and without bounds.

    Args:
        config: Config of the algorithm.
        name: name of the algorithm, for error messages.

    Raises:
        ConfigError: if it is not a frozen dataclass, has a field that cannot be an option, or has
            no field `gamma`, the discount factor, which rollouts need.
    """
    if not (inspect.isclass(config) and dataclasses.is_dataclass(config)):
        raise ConfigError(f"the Config of algorithm {name!r} is not a dataclass")
    if not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(
            f"the Config of algorithm {name!r} is mutable; make it "
            "@dataclasses.dataclass(frozen=True)"
        )
    types = typing.get_type_hints(config, include_extras=True)
    found = tuple(_option(field, types[field.name], name) for field in dataclasses.fields(config))
    if "gamma" not in {field.name for field in found}:
        raise ConfigError(
            f"the Config of algorithm {name!r} has no field gamma, the discount factor, which "
            "rollouts need"
        )
    return found


def _option(field: Field, annotation: Any, name: str) -> Field:
    """The field with its type as an object and with bounds."""
    field = copy.copy(field)
    field.type = annotation
    if "bounds" not in field.metadata:
        metadata = {"doc": "", "bounds": Bounds(None, None, False, None), **field.metadata}
        field.metadata = metadata  # type: ignore[assignment]
    if field.default is dataclasses.MISSING:
        raise ConfigError(
            f"the field {field.name!r} in the Config of algorithm {name!r} has no default value; "
            "every option needs one"
        )
    if kind(field).base not in OPTION_TYPES:
        raise ConfigError(
            f"the field {field.name!r} in the Config of algorithm {name!r} has the type "
            f"{annotation}; an option is a bool, int, float, str or Path, a tuple of one of them, "
            "or None"
        )
    return field


def _described(found: Any) -> str:
    return f"module {found.__name__}" if isinstance(found, ModuleType) else f"{found!r:.60}"
