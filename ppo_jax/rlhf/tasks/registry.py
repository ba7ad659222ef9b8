"""Tasks by name, and as text in the columns of data."""

import dataclasses
import functools
from typing import Any

from ppo_jax.config.options import ConfigError, check, coerce, did_you_mean, parse, show
from ppo_jax.rlhf.tasks.addition import Addition
from ppo_jax.rlhf.tasks.brackets import Brackets
from ppo_jax.rlhf.tasks.countdown import Countdown
from ppo_jax.rlhf.tasks.equation import Equation
from ppo_jax.rlhf.tasks.modular import Modular
from ppo_jax.rlhf.tasks.protocol import Task
from ppo_jax.rlhf.tasks.sorting import Sorting
from ppo_jax.rlhf.tasks.subtraction import Subtraction

TASKS: dict[str, type] = {
    "addition": Addition,
    "subtraction": Subtraction,
    "modular": Modular,
    "countdown": Countdown,
    "sorting": Sorting,
    "brackets": Brackets,
    "equation": Equation,
}


def make(name: str, **difficulty: Any) -> Task:
    """A task of a given difficulty.

    Args:
        name: name of the task, a key of TASKS.
        difficulty: values of the fields of the task; the others have their defaults.

    Raises:
        ConfigError: there is no such task, it has no such field, or a value is not allowed.
    """
    fields = _fields(name)
    values = {}
    for option, value in difficulty.items():
        field = _field(name, option, fields)
        values[option] = coerce(field, value)
        check(field, values[option])
    task: Task = TASKS[name](**values)
    return task


@functools.lru_cache(maxsize=256)
def from_text(text: str) -> Task:
    """The task of a text such as "addition digits=3 reverse=false".

    Raises:
        ConfigError: `make` refuses the task, or a part of the text has not the form NAME=VALUE.
    """
    name, *words = text.split() or [""]
    fields = _fields(name)
    difficulty = {}
    for word in words:
        option, equals, value = word.partition("=")
        field = _field(name, option, fields)
        try:
            difficulty[option] = parse(field, value) if equals else None
        except ValueError as error:
            raise ConfigError(f"task {text!r}: {error}") from error
        if not equals:
            raise ConfigError(f"task {text!r} has {word!r}; write {option}=VALUE")
    return make(name, **difficulty)


def to_text(task: Task) -> str:
    """The text of a task, of which `from_text` is the inverse; repr(task) of any other class."""
    name = next((name for name, kind in TASKS.items() if type(task) is kind), None)
    if name is None:
        return repr(task)
    words = []
    for field in dataclasses.fields(TASKS[name]):
        text = show(getattr(task, field.name))
        words.append(f"{field.name}={text.lower() if field.type is bool else text}")
    return " ".join([name, *words])


def _fields(name: str) -> dict[str, Any]:
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; {did_you_mean(name, TASKS)}")
    return {field.name: field for field in dataclasses.fields(TASKS[name])}


def _field(name: str, option: str, fields: dict[str, Any]) -> Any:
    if option not in fields:
        raise ConfigError(f"task {name} has no {option!r}; {did_you_mean(option, fields)}")
    return fields[option]
