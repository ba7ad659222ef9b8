"""Reasoning tasks whose answers are verified by a program, under jit and in plain Python.

A task draws problems from a key, solves them, and rewards a response with 1 if it is right and with
0 otherwise. `protocol.Task` is the interface; docs/reasoning_tasks.md describes the tasks.
"""

import dataclasses
from typing import Any

from ppo_jax.config.options import ConfigError, check_record, coerce, did_you_mean
from ppo_jax.rlhf.tasks.addition import Addition
from ppo_jax.rlhf.tasks.protocol import Task as Task

TASKS: dict[str, type] = {"addition": Addition}


def make(name: str, **difficulty: Any) -> Task:
    """A task of a given difficulty.

    Args:
        name: name of the task, a key of TASKS.
        difficulty: values of the fields of the task; the others have their defaults.

    Raises:
        ConfigError: there is no such task, it has no such field, or a value is not allowed.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; {did_you_mean(name, TASKS)}")
    fields = {field.name: field for field in dataclasses.fields(TASKS[name])}
    for option in difficulty:
        if option not in fields:
            raise ConfigError(f"task {name} has no {option!r}; {did_you_mean(option, fields)}")
    values = {option: coerce(fields[option], value) for option, value in difficulty.items()}
    task: Task = TASKS[name](**values)
    check_record(task)
    return task
