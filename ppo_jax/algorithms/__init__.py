"""The registry of algorithms: names, and the modules with their Config and make."""

import copy
import dataclasses
import functools
import inspect
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import ppo_jax.config.references as references
from ppo_jax.algorithms import a2c, actor_critic, ppo, ppo_kl, reinforce, trpo
from ppo_jax.config.options import Bounds, ConfigError, Field, did_you_mean, kind

ALGORITHMS: dict[str, ModuleType] = {
    "reinforce": reinforce,
    "actor_critic": actor_critic,
    "a2c": a2c,
    "trpo": trpo,
    "ppo_kl": ppo_kl,
    "ppo": ppo,
}
OPTION_TYPES = (bool, int, float, str, Path)


def get(name: str) -> Any:
    """The algorithm with a given name: a module or an object with Config and make.

    Args:
        name: name in ALGORITHMS, name registered by an installed package (entry-point group
            `ppo_jax.algorithms`), or reference: `package.module:Name` or the name of a module.

    Raises:
        ConfigError: if the name is unknown, the module cannot be imported, or the object is not an
            algorithm.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    known = {*ALGORITHMS, *references.registered("algorithm")}
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


def names_code(name: str) -> bool:
    """Whether a name refers to a module that is neither in the package nor registered by an
    installed package. Nothing is imported for this check."""
    known = name in ALGORITHMS or references.is_text(name)
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
