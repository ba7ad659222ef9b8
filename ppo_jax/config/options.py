"""Options: fields of dataclasses that know their help text, their type and their allowed values.

The command line, configuration files, sweeps, validation and the documentation all read an option
from its field, and take, check and show values by the functions of this module alone.
"""

import dataclasses
import difflib
import json
import math
import numbers
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

Field = dataclasses.Field[Any]


class ConfigError(ValueError):
    """A configuration that cannot work: what was given, what is allowed, what to do."""


class Bounds(NamedTuple):
    """The values an option may take; numbers are finite unless `high` is infinity itself."""

    low: float | None
    high: float | None
    open_low: bool
    choices: tuple[str, ...] | None

    def admits(self, value: Any) -> bool:
        """Whether a concrete value lies inside; NaN never does."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, str | Path):
            return True
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = value <= self.high if self.high is not None else value < math.inf
        return bool(above and below and value > -math.inf)

    def __str__(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        parts = []
        if self.low is not None:
            parts.append(f"{'>' if self.open_low else '>='} {self.low}")
        if self.high is not None and self.high < math.inf:
            parts.append(f"<= {self.high}")
        return " and ".join(parts) or "finite"


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field that is an option.

    Args:
        default: its value if none is given.
        doc: help text.
        low: least value, itself excluded if `open_low`.
        high: greatest value; infinity admits infinity.
        open_low: whether `low` itself is excluded.
        choices: the names it may be one of.
    """
    bounds = Bounds(low, high, open_low, choices)
    return dataclasses.field(default=default, metadata={"doc": doc, "bounds": bounds})


class Kind(NamedTuple):
    """The type of an option's values.

    Attributes:
        base: bool, int, float, str or Path.
        several: whether a value is a tuple of these.
        optional: whether None is a value, too.
    """

    base: type
    several: bool
    optional: bool

    def __str__(self) -> str:
        name = f"tuple[{self.base.__name__}, ...]" if self.several else self.base.__name__
        return f"{name} | None" if self.optional else name


def kind(field: Field) -> Kind:
    """The type of an option's values, from the annotation of its field."""
    annotation, optional, several = field.type, False, False
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (types.UnionType, typing.Union):
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        annotation, optional = members[0], len(members) < len(get_args(annotation))
    if get_origin(annotation) is tuple:
        annotation, several = get_args(annotation)[0], True
    return Kind(typing.cast(type, annotation), several, optional)


def is_float(field: Field) -> bool:
    """Whether the values are real numbers, which compiled programs take as arguments."""
    return kind(field).base is float


def check(field: Field, value: Any) -> None:
    """Refuse a value of another type, or out of range.

    Raises:
        ConfigError: what was given and what is allowed.
    """
    wanted, bounds = kind(field), field.metadata["bounds"]
    if value is None and wanted.optional:
        return
    if wanted.several and not isinstance(value, tuple):
        raise ConfigError(f"{field.name} is {value!r}; it must be of type {wanted}")
    for item in value if wanted.several else (value,):
        if not _is_of(wanted.base, item):
            raise ConfigError(f"{field.name} is {value!r}; it must be of type {wanted}")
        if not bounds.admits(item):
            raise ConfigError(f"{field.name} is {value!r}; it must be {bounds}")


def check_record(record: Any) -> None:
    """Refuse a value of another type, or out of range, in any dataclass made of options.

    Raises:
        ConfigError: what was given and what is allowed.
    """
    for field in dataclasses.fields(record):
        check(field, getattr(record, field.name))


def _is_of(base: type, value: Any) -> bool:
    """Whether a value is of a type; numbers may be numpy's or an array of shape ()."""
    if base in (bool, str, Path):
        return isinstance(value, base)
    if isinstance(value, bool):
        return False
    if getattr(value, "shape", None) == ():
        value = value.item()
    return isinstance(value, numbers.Real if base is float else numbers.Integral)


def coerce(field: Field, value: Any) -> Any:
    """A value as the option's type has it, where Python, JSON or TOML wrote the same otherwise.

    5e5 for a whole number, 1 for a real one, "inf", a list for a tuple, text for a path. Whatever
    does not fit is returned as it is; `check` refuses it.

    Raises:
        ConfigError: a whole number too large for a real one.
    """
    wanted = kind(field)
    if not wanted.several:
        return _coerced(field.name, wanted.base, value)
    if not isinstance(value, list | tuple):
        return value
    return tuple(_coerced(field.name, wanted.base, item) for item in value)


def _coerced(name: str, base: type, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if base is float and isinstance(value, int):
        # A large one would overflow an int32 argument of a program.
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

    "none" is None; several whole or real numbers are joined by "x", several texts by "+".

    Raises:
        ValueError: the word is not of the option's type.
    """
    wanted = kind(field)
    if wanted.optional and word.lower() == "none":
        return None
    if not wanted.several:
        return _parsed(wanted.base, word)
    separator = "x" if wanted.base in (int, float) else "+"
    return tuple(_parsed(wanted.base, part) for part in word.split(separator))


def _parsed(base: type, word: str) -> Any:
    if base is bool:
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{word!r} is neither true nor false")
        return word.lower() == "true"
    return whole(word) if base is int else base(word)


def whole(word: str) -> int:
    """A whole number from text: 500000 and 5e5 are, 1.5 is not.

    Raises:
        ValueError: it is none.
    """
    try:
        return int(word)
    except ValueError:
        number = float(word)
    if not number.is_integer():
        raise ValueError(f"{word} is not a whole number")
    return int(number)


def guess(word: str) -> Any:
    """A value from text whose type nobody states: a number or a truth value where JSON would read
    one (1e3 is a whole number), else the text."""
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
    """A value in JSON's types: numpy's numbers as Python's, infinities and paths as text."""
    value = value.item() if getattr(value, "shape", None) == () else value
    as_text = isinstance(value, Path) or value in (math.inf, -math.inf)
    return str(value) if as_text else value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a message: the nearest known names, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
