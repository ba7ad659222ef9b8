"""Schedules: values of an option that change over a run.

linear(3e-4, 0)      cosine(3e-4, 0, warmup=0.05)      constant(3e-4)      adaptive(3e-4)

The kind of a schedule is static and its numbers are traced, so that one compiled program serves
every linear schedule and vmaps over many.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from ppo_jax.config.errors import ConfigError, did_you_mean
from ppo_jax.config.traced import is_tracer

if TYPE_CHECKING:
    import jax


class Form(NamedTuple):
    """One kind of schedule.

    Attributes:
        parameters: names of the numbers of the schedule, in the order in which they are written.
        defaults: default values of the numbers that may be omitted.
        weight: function from q in [0, 1] to the weight w of the first number; the second number has
            weight 1 − w. None: the value does not depend on the progress.
    """

    parameters: tuple[str, ...]
    defaults: dict[str, float]
    weight: Callable[[jax.Array], Any] | None


def _half_cosine(q: jax.Array) -> jax.Array:
    import jax.numpy as jnp

    return 0.5 * (1.0 + jnp.cos(jnp.pi * q))


FORMS = {
    "constant": Form(("value", "warmup"), {"warmup": 0.0}, lambda q: 1.0),
    "linear": Form(("start", "end", "warmup"), {"warmup": 0.0}, lambda q: 1.0 - q),
    "cosine": Form(("start", "end", "warmup"), {"warmup": 0.0}, _half_cosine),
    "adaptive": Form(
        ("start", "target_kl", "low", "high"),
        {"target_kl": 0.01, "low": 1e-5, "high": 1e-2},
        None,
    ),
}
HOW = "write linear(3e-4, 0), cosine(3e-4, 0, warmup=0.05), constant(3e-4) or adaptive(3e-4)"


@dataclasses.dataclass(frozen=True, repr=False)
class Schedule:
    """A value that changes over a run; hashable unless its numbers are tracers.

    Attributes:
        kind: kind of the schedule, a name in FORMS.
        numbers: one number for each parameter of that kind.
    """

    kind: str
    numbers: tuple[Any, ...]

    @property
    def parameters(self) -> dict[str, Any]:
        """Name -> number."""
        return dict(zip(FORMS[self.kind].parameters, self.numbers, strict=True))

    @property
    def adaptive(self) -> bool:
        """Whether the value depends on the updates instead of the progress of the run."""
        return FORMS[self.kind].weight is None

    @property
    def moves(self) -> bool:
        """Whether the value depends on the progress of the run."""
        warmup = self.parameters.get("warmup", 0.0)
        still = is_tracer(warmup) or warmup == 0
        return not self.adaptive and not (self.kind == "constant" and still)

    def replace(self, numbers: dict[str, Any]) -> Schedule:
        """A schedule of the same kind with other numbers, given by name."""
        return Schedule(self.kind, tuple((self.parameters | numbers).values()))

    def at(self, progress: jax.Array | float) -> jax.Array:
        """The value at a point of the run.

        w(q) start + (1 − w(q)) end,   q = (p − warmup) / (1 − warmup)
        linear: w = 1 − q;   cosine: w = ½ (1 + cos π q);   start · p / warmup where p < warmup

        The value of an adaptive schedule is its start: the KL divergence is not known here.

        Args:
            progress: [...] p, the fraction of the run that is done; it is clipped to [0, 1].

        Returns:
            [...] value.

        Source: Loshchilov & Hutter 2017, SGDR, eq. 5, without restarts; the warm-up is that of
        Goyal et al. 2017, Accurate, Large Minibatch SGD, section 2.2, from 0.
        """
        import jax.numpy as jnp

        start, weight = self.numbers[0], FORMS[self.kind].weight
        p = jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0)
        if weight is None:
            return jnp.broadcast_to(jnp.asarray(start, jnp.float32), p.shape)
        parameters = self.parameters
        warmup = parameters["warmup"]
        w = weight(jnp.maximum(0.0, p - warmup) / (1.0 - warmup))
        settled = w * start + (1.0 - w) * parameters.get("end", start)
        rising = start * (p / jnp.where(warmup > 0, warmup, 1.0))
        return jnp.where(p < warmup, rising, settled)

    def __str__(self) -> str:
        form, words = FORMS[self.kind], []
        for name, number in self.parameters.items():
            default = form.defaults.get(name)
            if default is None:
                words.append(_text(number))
            elif is_tracer(number) or number != default:
                words.append(f"{name}={_text(number)}")
        return f"{self.kind}({', '.join(words)})"

    __repr__ = __str__


# The type of an option whose values are real numbers or schedules. A type checker treats it as a
# float, because every formula receives a number.
Scheduled = Annotated[float, Schedule]


def constant(value: float, *, warmup: float = 0.0) -> Any:
    """A constant value.

    Args:
        value: value of the option.
        warmup: fraction of the run, in [0, 1), during which the value rises linearly from 0.

    Returns:
        The schedule, as a value of the option.
    """
    return _schedule("constant", value, warmup)


def linear(start: float, end: float, *, warmup: float = 0.0) -> Any:
    """A value that changes linearly over the run.

    Args:
        start: value at the beginning of the run, or after the warm-up.
        end: value at the end of the run.
        warmup: fraction of the run, in [0, 1), during which the value rises linearly from 0.

    Returns:
        The schedule, as a value of the option.
    """
    return _schedule("linear", start, end, warmup)


def cosine(start: float, end: float, *, warmup: float = 0.0) -> Any:
    """A value that changes along half a period of the cosine over the run.

    Args:
        start: value at the beginning of the run, or after the warm-up.
        end: value at the end of the run.
        warmup: fraction of the run, in [0, 1), during which the value rises linearly from 0.

    Returns:
        The schedule, as a value of the option.
    """
    return _schedule("cosine", start, end, warmup)


def adaptive(
    start: float, target_kl: float = 0.01, *, low: float = 1e-5, high: float = 1e-2
) -> Any:
    """A learning rate that keeps the KL divergence of an update near a target.

    Args:
        start: learning rate of the first update.
        target_kl: target of the KL divergence of an update, in nats.
        low: smallest learning rate.
        high: largest learning rate.

    Returns:
        Schedule; `ppo_jax.optimizer.adapt` computes the next learning rate.
    """
    return _schedule("adaptive", start, target_kl, low, high)


def is_schedule(value: Any) -> bool:
    """Whether a value changes over a run: a Schedule, or a function of the progress in [0, 1]."""
    return isinstance(value, Schedule) or callable(value)


def is_adaptive(value: Any) -> bool:
    """Whether a value is a schedule that depends on the updates."""
    return isinstance(value, Schedule) and value.adaptive


def moves(value: Any) -> bool:
    """Whether a value depends on the progress of the run."""
    return value.moves if isinstance(value, Schedule) else callable(value)


def check_moving(config: Any, horizon: Any) -> None:
    """Refuse schedules that could never move.

    Args:
        config: a Config of an algorithm.
        horizon: number of environment steps over which schedules move; a tracer is not checked.

    Raises:
        ConfigError: a schedule is invalid; the message states the value and a remedy.
    """
    if is_tracer(horizon) or not math.isinf(horizon):
        return
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if moves(value):
            name = value if isinstance(value, Schedule) else "a function of the progress"
            raise ConfigError(
                f"{field.name} is {name}, which varies over anneal_timesteps, but anneal_timesteps "
                "is infinite or unknown; set anneal_timesteps to a number of environment steps, or "
                "use constant(...) for a constant learning rate"
            )


def value_at(value: Any, progress: jax.Array | float) -> Any:
    """The value of an option at a point of the run, as a number.

    Args:
        value: a number, which is returned as it is, a Schedule, or a function of the progress.
        progress: [] fraction of the run that is done; it is clipped to [0, 1].
    """
    if isinstance(value, Schedule):
        return value.at(progress)
    if callable(value):
        import jax.numpy as jnp

        return jnp.asarray(value(jnp.clip(progress, 0.0, 1.0)), jnp.float32)
    return value


def at(config: Any, progress: jax.Array | float) -> Any:
    """A Config with numbers in place of its schedules.

    Args:
        config: a dataclass of options.
        progress: [] fraction of the run that is done.

    Returns:
        The Config with numbers; the same object if it has no schedule.
    """
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    numbers = {n: value_at(v, progress) for n, v in values.items() if is_schedule(v)}
    return dataclasses.replace(config, **numbers) if numbers else config


def parse(text: str) -> Schedule:
    """A schedule from its text, as `str` writes it: cosine(3e-4, 0, warmup=0.05).

    Raises:
        ValueError: the text is not a schedule; the message gives the reason.
    """
    found = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text)
    if found is None:
        raise ValueError(HOW)
    kind, inside = found.groups()
    if kind not in FORMS:
        raise ValueError(f"there is no schedule {kind!r}; {did_you_mean(kind, FORMS)}")
    words = inside.split(",") if inside.strip() else []
    names, given = FORMS[kind].parameters, dict[str, float]()
    if len(words) > len(names):
        raise ValueError(_usage(kind))
    for place, word in enumerate(words):
        name, equals, number = word.partition("=")
        name, number = (name.strip(), number) if equals else (names[place], word)
        if name not in names:
            raise ValueError(f"{kind} has no {name!r}; {did_you_mean(name, names)}")
        if name in given:
            raise ValueError(f"{name} is given twice")
        try:
            given[name] = float(number)
        except ValueError as error:
            raise ValueError(f"{number.strip()!r} is not a number") from error
    if missing := [n for n in names if n not in {**FORMS[kind].defaults, **given}]:
        raise ValueError(f"{_usage(kind)}; {missing[0]} is missing")
    given = FORMS[kind].defaults | given
    return Schedule(kind, tuple(given[name] for name in names))


def _text(number: Any) -> str:
    """A number as text with all its digits, so that `parse` returns the same number."""
    try:
        return repr(float(number))
    except (TypeError, ValueError):
        return repr(number)


def _usage(kind: str) -> str:
    form = FORMS[kind]
    words = [f"{n}={form.defaults[n]}" if n in form.defaults else n for n in form.parameters]
    return f"it takes {kind}({', '.join(words)})"


def _schedule(kind: str, *numbers: Any) -> Schedule:
    """A schedule with integers as real numbers; `options.check` refuses what is not a number."""
    whole = (isinstance(x, int) and not isinstance(x, bool) for x in numbers)
    return Schedule(kind, tuple(float(x) if w else x for x, w in zip(numbers, whole, strict=True)))
