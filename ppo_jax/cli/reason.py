"""`ppo-jax rlhf reason`: the plan that the values of a command line describe."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ppo_jax.config import ConfigError
from ppo_jax.config.options import check, floats_of
from ppo_jax.config.reasoning import DEFAULTS, WITHOUT, Reason
from ppo_jax.config.rlhf import Rollouts, Update
from ppo_jax.config.schedules import is_schedule
from ppo_jax.rlhf import tasks
from ppo_jax.rlhf.decoder import Decoder, small
from ppo_jax.rlhf.folder import flat
from ppo_jax.rlhf.reasoning import session
from ppo_jax.rlhf.reasoning.optimise import Plan
from ppo_jax.rlhf.tasks import tokens
from ppo_jax.runs.options import StageOptions
from ppo_jax.sweep.points import grid, parse_vary

Values = dict[str, Any]


def prepared(values: Values, options: StageOptions) -> Callable[[], int]:
    """The command, ready to run.

    Args:
        values: options by name.
        options: options of the run directory.

    Raises:
        ConfigError, ValueError: options that are invalid or cannot be combined.
    """
    return session.prepared(plan_of(values), options, flat(values))


def plan_of(values: Values) -> Plan:
    """The plan of a run.

    Args:
        values: options by name.

    Raises:
        ConfigError: an option is invalid; the message states the allowed values.
    """
    values = _varied_as_numbers(values)
    reason = Reason(**_of(Reason, values))
    task = tasks.from_text(" ".join([reason.task, *reason.difficulty]))
    rollouts = {**_of(Rollouts, values), "max_new_tokens": task.response_length}
    config, hyper = Rollouts(**rollouts), Update(**_of(Update, values))
    return Plan(task, _decoder(task, reason), reason, config, hyper, _points(values, config, hyper))


def _varied_as_numbers(values: Values) -> Values:
    """The values, in which an option that varies is a number where its default is a schedule."""
    replaced = {}
    for name in map(_name, values["vary"]):
        default = DEFAULTS.get(name)
        if is_schedule(default) and values[name] == default:
            replaced[name] = default.numbers[0]
    return values | replaced


def _name(word: str) -> str:
    """The option that an argument of --vary names."""
    return word.partition("=")[0].strip().lstrip("-").replace("-", "_")


def _of(kind: Any, values: Values) -> Values:
    """The values of the options of a record."""
    return {f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}


def _decoder(task: Any, reason: Reason) -> Decoder:
    """The decoder, whose context holds a prompt and its response.

    Raises:
        ConfigError: the sizes do not fit together.
    """
    if reason.hidden_size % (2 * reason.num_heads):
        raise ConfigError(
            f"hidden_size is {reason.hidden_size}; it must be a multiple of 2 x num_heads = "
            f"{2 * reason.num_heads}, because rotary positions need heads of an even size"
        )
    return Decoder(
        small(
            tokens.size(task.vocabulary),
            reason.hidden_size,
            reason.num_layers,
            reason.num_heads,
            num_kv_heads=reason.num_heads // 2 if reason.num_heads % 2 == 0 else reason.num_heads,
            eos_ids=(tokens.EOS,),
            max_positions=max(512, task.prompt_length + task.response_length),
            tied=False,
        )
    )


def _points(values: Values, config: Rollouts, hyper: Update) -> tuple[dict[str, float], ...]:
    """The configurations that --vary asks for, [{}] without it.

    Raises:
        ConfigError: an option is not a number that can vary, or a value is out of range.
    """
    records = {**vars(config), **vars(hyper)}
    fields = {f.name: f for kind in (Rollouts, Update) for f in dataclasses.fields(kind)}
    fields = {name: f for name, f in fields.items() if name not in WITHOUT}
    numbers = {n: f for n, f in fields.items() if floats_of(f, records[n]).keys() == {n}}
    words = values["vary"]
    for name in map(_name, words):
        if name in fields and name not in numbers:
            raise ConfigError(
                f"--vary {name}: it is {records[name]!r} and determines the program; only real "
                f"numbers can vary here: {', '.join(numbers)}"
            )
    points = grid(parse_vary(words, numbers))
    for point in points:
        for name, value in point.items():
            if floats_of(fields[name], value).keys() != {name}:
                raise ConfigError(f"--vary {name}: {value!r} is not a number")
            check(fields[name], value)
    return tuple(points)
