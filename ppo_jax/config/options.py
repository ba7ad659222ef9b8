"""Options: fields of dataclasses with a help text, a type and allowed values.

The command line, configuration files, sweeps, validation and the documentation read an option from
its field. They parse, check and show values only with the functions of this module.
"""

import dataclasses
import json
import math
import numbers
import types
import typing
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from ppo_jax.config import schedules
from ppo_jax.config.errors import ConfigError as ConfigError
from ppo_jax.config.errors import did_you_mean as did_you_mean
from ppo_jax.config.schedules import Schedule
from ppo_jax.config.traced import is_tracer

Field = dataclasses.Field[Any]


class Bounds(NamedTuple):
    """The values that an option may have; numbers are finite unless `high` is infinity."""

    low: float | None
    high: float | None
    open_low: bool
    choices: tuple[str, ...] | None
    open_high: bool = False

    def admits(self, value: Any) -> bool:
        """Whether a concrete value is allowed; NaN never is."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, str | Path):
            return True
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        high = math.inf if self.high is None else self.high
        below = value < high if self.open_high or self.high is None else value <= high
        return bool(above and below and value > -math.inf)

    def __str__(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        parts = []
        if self.low is not None:
            parts.append(f"{'>' if self.open_low else '>='} {self.low}")
        if self.high is not None and self.high < math.inf:
            parts.append(f"{'<' if self.open_high else '<='} {self.high}")
        return " and ".join(parts) or "finite"


# Indices are int32.
MAX_SIZE = 2**31 - 1
# The smallest normal number and the largest number of float32.
TINY, HUGE = 2.0**-126, 3.4028235e38
FLOAT32 = ", and of a size from 1.2e-38 to 3.4e38, the range of float32"
SCHEDULED = "a number or a schedule, such as linear(3e-4, 0)"
# The bounds of those numbers of a schedule that are not values of its option.
SHARE = Bounds(0, 1, False, None, open_high=True)
DIVERGENCE = Bounds(0, None, True, None)


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    choices: tuple[str, ...] | None = None,
    adaptive: bool = False,
    may_vanish: bool = False,
    large: bool = False,
) -> Any:
    """A dataclass field that is an option.

    Args:
        default: value of the option if none is given.
        doc: help text, a whole phrase.
        low: smallest value; not allowed itself if `open_low`.
        high: largest value; infinity allows infinity.
        open_low: whether `low` itself is not allowed.
        choices: names of which the value must be one.
        adaptive: whether the value may be an adaptive schedule.
        may_vanish: whether a schedule may reach `low` where a number must not equal it.
        large: whether an integer is not the size of an array, and may exceed 2^31 − 1.
    """
    metadata = {
        "doc": doc,
        "bounds": Bounds(low, high, open_low, choices),
        "adaptive": adaptive,
        "may_vanish": may_vanish,
        "large": large,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Kind(NamedTuple):
    """The type of an option's values.

    Attributes:
        base: bool, int, float, str or Path.
        several: whether a value is a tuple of that type.
        optional: whether None is allowed as well.
        scheduled: whether a schedule is allowed as well.
    """

    base: type
    several: bool
    optional: bool
    scheduled: bool = False

    def __str__(self) -> str:
        name = f"tuple[{self.base.__name__}, ...]" if self.several else self.base.__name__
        name = f"{name} | Schedule" if self.scheduled else name
        return f"{name} | None" if self.optional else name


def kind(field: Field) -> Kind:
    """The type of an option's values, from the annotation of its field."""
    annotation, optional, several, scheduled = field.type, False, False, False
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        scheduled = Schedule in notes
    if get_origin(annotation) in (types.UnionType, typing.Union):
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        annotation, optional = members[0], len(members) < len(get_args(annotation))
    if get_origin(annotation) is tuple:
        annotation, several = get_args(annotation)[0], True
    return Kind(typing.cast(type, annotation), several, optional, scheduled)


def is_float(field: Field) -> bool:
    """Whether the values are real numbers, which compiled programs take as arguments."""
    return kind(field).base is float


def floats_of(field: Field, value: Any) -> dict[str, Any]:
    """The real numbers in an option's value, which compiled programs take as arguments.

    Args:
        field: field of the option.
        value: value of the option.

    Returns:
        name -> number. The name is that of the option, or for example "learning_rate.start" for a
        number of a schedule. The dictionary is empty where the value has no real numbers.
    """
    if isinstance(value, Schedule):
        return {f"{field.name}.{name}": number for name, number in value.parameters.items()}
    return {field.name: value} if is_float(field) and not (value is None or callable(value)) else {}


def with_floats(field: Field, value: Any, floats: dict[str, Any]) -> Any:
    """An option's value with other numbers, which have the names that `floats_of` gives them."""
    if isinstance(value, Schedule):
        prefix = f"{field.name}."
        return value.replace({n: floats.get(prefix + n, x) for n, x in value.parameters.items()})
    return floats.get(field.name, value)


def check(field: Field, value: Any) -> None:
    """Refuse a value of another type, or out of range.

    Raises:
        ConfigError: a value is invalid; the message states the value and the allowed range.
    """
    wanted, bounds = kind(field), field.metadata["bounds"]
    if value is None and wanted.optional:
        return
    if wanted.scheduled and schedules.is_schedule(value):
        _check_schedule(field, value)
        return
    if wanted.several and not isinstance(value, tuple):
        raise ConfigError(f"{field.name} is {value!r}; it must be of type {wanted}")
    for item in value if wanted.several else (value,):
        if not _is_of(wanted.base, item):
            allowed = SCHEDULED if wanted.scheduled else f"of type {wanted}"
            raise ConfigError(f"{field.name} is {value!r}; it must be {allowed}")
        if not bounds.admits(item):
            raise ConfigError(f"{field.name} is {value!r}; it must be {bounds}")
        if wanted.base is float and not _fits_float32(item):
            raise ConfigError(f"{field.name} is {value!r}; it must be {bounds}{FLOAT32}")
        unbounded = wanted.base is int and bounds.high is None and not field.metadata.get("large")
        if unbounded and item > MAX_SIZE:
            raise ConfigError(f"{field.name} is {value!r}; it must be {bounds} and <= {MAX_SIZE}")


def _fits_float32(value: Any) -> bool:
    """Whether a number is neither infinite nor 0 when it is converted to float32."""
    size = abs(float(value))
    return size in (0.0, math.inf) or TINY <= size <= HUGE


def _check_schedule(field: Field, schedule: Any) -> None:
    """Refuse a schedule that the option does not allow, or that has a number out of range."""
    bounds: Bounds = _schedule_bounds(field)
    if not isinstance(schedule, Schedule):
        _check_function(field, schedule)
        return
    given = f"{field.name} is {schedule}"
    if schedule.adaptive and not field.metadata["adaptive"]:
        raise ConfigError(
            f"{given}, which follows the KL divergence of updates; only the learning rate of an "
            "algorithm that reports approx_kl can be adaptive"
        )
    ranges = {"warmup": SHARE, "target_kl": DIVERGENCE}
    known = {n: x for n, x in schedule.parameters.items() if not is_tracer(x)}
    for name, number in known.items():
        allowed = ranges.get(name, bounds)
        if not _is_of(float, number) or not math.isfinite(number):
            raise ConfigError(f"{given}; its {name} must be a finite number")
        if not allowed.admits(number):
            raise ConfigError(f"{given}; its {name} must be {allowed}")
        if not _fits_float32(number):
            raise ConfigError(f"{given}; its {name} must be {allowed}{FLOAT32}")
    if known.get("warmup", 0) > 0 and not bounds.admits(0.0):
        raise ConfigError(f"{given}; a warm-up begins at 0, but {field.name} must be {bounds}")
    _check_vanishing(field, schedule, known)
    if {"low", "start", "high"} <= known.keys():
        low, start, high = (known[name] for name in ("low", "start", "high"))
        if not low <= start <= high:
            raise ConfigError(f"{given}; its start must be >= low = {low} and <= high = {high}")


def _schedule_bounds(field: Field) -> Bounds:
    """The values that a schedule may pass through."""
    bounds: Bounds = field.metadata["bounds"]
    return bounds._replace(open_low=False) if field.metadata.get("may_vanish") else bounds


def _check_vanishing(field: Field, schedule: Schedule, known: dict[str, Any]) -> None:
    """Refuse a schedule whose values all equal a `low` that is not allowed."""
    bounds: Bounds = field.metadata["bounds"]
    kept = ("start",) if schedule.adaptive else ("value", "start", "end")
    values = [known[name] for name in kept if name in known]
    traced = len(values) < sum(name in schedule.parameters for name in kept)
    if values and not traced and not any(bounds.admits(x) for x in values):
        raise ConfigError(f"{field.name} is {schedule}; it must be {bounds} at some time")


def _check_function(field: Field, function: Any) -> None:
    """Refuse a function of the progress that returns values which the option does not allow."""
    import jax

    bounds = _schedule_bounds(field)
    for progress in (0.0, 0.5, 1.0):
        try:
            with jax.ensure_compile_time_eval():  # a Config may be checked during tracing
                value = function(progress)
                value = value.item() if getattr(value, "shape", None) == () else value
        except Exception as error:  # a function of the user may raise any error
            raise ConfigError(
                f"{field.name} is a function of the progress that fails at {progress}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not (_is_of(float, value) and bounds.admits(value) and _fits_float32(value)):
            raise ConfigError(
                f"{field.name} is a function of the progress that gives {value!r} at {progress}; "
                f"it must give one number {bounds}{FLOAT32}"
            )


def check_record(record: Any) -> None:
    """Refuse a value of another type, or out of range, in any dataclass made of options.

    Raises:
        ConfigError: a value is invalid; the message states the value and the allowed range.
    """
    for field in dataclasses.fields(record):
        check(field, getattr(record, field.name))


def _is_of(base: type, value: Any) -> bool:
    """Whether a value is of a type; a number may also be NumPy's, or an array of shape ()."""
    if base in (bool, str, Path):
        return isinstance(value, base)
    if isinstance(value, bool):
        return False
    if getattr(value, "shape", None) == ():
        value = value.item()
    return isinstance(value, numbers.Real if base is float else numbers.Integral)


def coerce(field: Field, value: Any) -> Any:
    """A value converted to the type of its option, from what Python, JSON or TOML can express.

    Examples are 5e5 for an integer, 1 for a real number, "inf", a list for a tuple, text for a path
    or a schedule, and "none" for None, which TOML cannot express. A value that cannot be converted
    is returned unchanged, and `check` refuses it.

    Raises:
        ConfigError: an integer too large for a real number, or an invalid schedule.
    """
    wanted = kind(field)
    if wanted.scheduled and isinstance(value, str) and "(" in value:
        return _schedule(field, value)
    if isinstance(value, str) and means_none(field, value):
        return None
    if not wanted.several:
        return _coerced(field.name, wanted.base, value)
    if not isinstance(value, list | tuple):
        return value
    return tuple(_coerced(field.name, wanted.base, item) for item in value)


def means_none(field: Field, text: str) -> bool:
    """Whether a text stands for None: "none" in any case, unless the option has such a choice."""
    choices = field.metadata["bounds"].choices or ()
    return kind(field).optional and text.lower() == "none" and text not in choices


def _coerced(name: str, base: type, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if base is float and isinstance(value, int):
        # A large integer would overflow an int32 argument of a program.
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{name} is {value}; it must be finite") from error
    if base is float and isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    real = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    if base is int and real and float(value).is_integer():
        return int(value)
    return Path(value) if base is Path and isinstance(value, str) else value


def parse(field: Field, word: str) -> Any:
    """A value from one word of text, as `show` writes it.

    "none" means None. Several numbers are joined by "x", several texts by "+". A schedule has
    parentheses.

    Raises:
        ValueError: the word is not of the option's type.
        ConfigError: an invalid schedule, with the reason.
    """
    wanted = kind(field)
    if wanted.scheduled and "(" in word:
        return _schedule(field, word)
    if means_none(field, word):
        return None
    if not wanted.several:
        return _parsed(wanted.base, word)
    separator = "x" if wanted.base in (int, float) else "+"
    return tuple(_parsed(wanted.base, part) for part in word.split(separator))


def _schedule(field: Field, text: str) -> Schedule:
    try:
        return schedules.parse(text)
    except ValueError as error:
        raise ConfigError(f"{field.name} is {text!r}: {error}") from error


def _parsed(base: type, word: str) -> Any:
    if base is bool:
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{word!r} is neither true nor false")
        return word.lower() == "true"
    return whole(word) if base is int else base(word)


def whole(word: str) -> int:
    """An integer from text, such as 500000 or 5e5.

    Raises:
        ValueError: the text is not an integer.
    """
    try:
        return int(word)
    except ValueError:
        number = float(word)
    if not number.is_integer():
        raise ValueError(f"{word} is not a whole number")
    return int(number)


def guess(word: str) -> Any:
    """A value from text of unknown type: a number or a truth value where JSON would read one (1e3
    is an integer), otherwise the text."""
    try:
        value = json.loads(word.lower() if word in ("True", "False") else word)
    except ValueError:
        return word
    scientific = "e" in word.lower() and isinstance(value, float) and value.is_integer()
    return int(value) if scientific else value


def show(value: Any) -> str:
    """A value as text; `parse` is the inverse."""
    if isinstance(value, tuple | list):
        texts = any(isinstance(item, str) for item in value)
        return ("+" if texts else "x").join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)


def to_json(value: Any) -> Any:
    """A value in JSON's types: NumPy's numbers as Python's; infinities, paths, schedules as text.

    Raises:
        ConfigError: the value is a function, which cannot be written as text.
    """
    if isinstance(value, Schedule):
        return str(value)
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        raise ConfigError(
            f"{name} is a function of the progress, which no file can hold; a run in a folder "
            "takes constant(...), linear(...), cosine(...) or adaptive(...)"
        )
    value = value.item() if getattr(value, "shape", None) == () else value
    as_text = isinstance(value, Path) or value in (math.inf, -math.inf)
    return str(value) if as_text else value
