"""The configurations of a sweep, from texts such as `learning_rate=1e-4,3e-4`.

A point is the dictionary of the values in which a configuration differs from the base.
"""

import dataclasses
import itertools
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppo_jax import config as configs
from ppo_jax.config import TrainConfig, foreign
from ppo_jax.config.options import SCHEDULED, ConfigError, did_you_mean, is_float, kind, parse, show

Overrides = dict[str, Any]
SCALES = ("log", "lin")
FIXED = ("seed",)  # set by the sweep itself


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of real values, for sampling or for a grid with equal steps.

    Attributes:
        scale: "log" or "lin".
        low, high: bounds, both included.
        count: number of grid values; None for sampling only.
    """

    scale: str
    low: float
    high: float
    count: int | None = None

    def at(self, u: float) -> float:
        """The value at fraction u in [0, 1] of the interval, rounded to six digits."""
        if self.scale == "log":
            value = self.low * (self.high / self.low) ** u
        else:
            value = self.low + (self.high - self.low) * u
        return min(max(float(f"{value:.6g}"), self.low), self.high)


def parse_vary(words: Sequence[str], known: dict[str, Any]) -> dict[str, Range | list[Any]]:
    """Parse the values that vary, from the arguments of --vary.

    Args:
        words: texts "name=a,b,c", or "name=log:low:high" and "name=lin:low:high" for sampling, with
            ":count" for a grid; tuples as "64x64" or "size=42+frames=3", "none" for None; schedules
            as "linear(3e-4, 0)".
        known: name -> field, for all options.

    Raises:
        ConfigError: a text has another form, a name is unknown, or a name is repeated.
    """
    varied: dict[str, Range | list[Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not text:
            raise ConfigError(
                f"--vary is {word!r}; give name=a,b,c or name=log:low:high or name=lin:low:high"
            )
        if name in FIXED:
            raise ConfigError(f"--vary {name}: seeds are set by --seeds and --seed")
        if name not in known:
            hint = foreign.hint(name, known, show=str) or did_you_mean(name, known)
            raise ConfigError(f"--vary: unknown option {name!r}; {hint}")
        if name in varied:
            raise ConfigError(f"--vary gives {name} twice; put all its values into one")
        varied[name] = _values(name, text, known[name])
    return varied


def grid(varied: dict[str, Range | list[Any]]) -> list[Overrides]:
    """All combinations of the values, the last name varying fastest; [{}] if nothing varies.

    Raises:
        ConfigError: a range has no count.
    """
    axes = []
    for name, values in varied.items():
        if isinstance(values, Range):
            if values.count is None:
                raise ConfigError(
                    f"--vary {name} is a range: sample from it with --sample, or give the number "
                    f"of values with {values.scale}:{values.low:g}:{values.high:g}:COUNT"
                )
            steps = max(values.count - 1, 1)
            cuts = [values.at(i / steps) for i in range(values.count)]
            if len({*cuts}) < len(cuts):
                raise ConfigError(
                    f"--vary {name}: some of its {len(cuts)} values are equal to six digits"
                )
            axes.append(cuts)
        else:
            axes.append(values)
    return [dict(zip(varied, row, strict=True)) for row in itertools.product(*axes)]


def sample(
    varied: dict[str, Range | list[Any]], count: int, sampler: str = "sobol", seed: int = 0
) -> list[Overrides]:
    """Random search: distinct points, uniform in the scale of each range and over each list.

    Args:
        varied: values to draw from, as returned by `parse_vary`.
        count: number of points P.
        sampler: "sobol", a scrambled Sobol sequence that covers the space evenly, or "uniform".
        seed: seed of the random numbers.

    Raises:
        ConfigError: nothing varies, or there are fewer combinations than points.
    """
    if not varied:
        raise ConfigError("--sample needs values to draw from: --vary name=log:low:high")
    for name, values in varied.items():
        if isinstance(values, Range) and values.count is not None:
            raise ConfigError(
                f"--vary {name} gives a number of values, which does not apply to --sample; omit it"
            )
    points: list[Overrides] = []
    for u in _draws(len(varied), 32 * count, sampler, seed):
        point = {
            name: values.at(x) if isinstance(values, Range) else values[int(x * len(values))]
            for (name, values), x in zip(varied.items(), u, strict=True)
        }
        if point not in points:
            points.append(point)
        if len(points) == count:
            return points
    raise ConfigError(
        f"--sample {count}, but there are only {len(points)} combinations of "
        f"{', '.join(varied)}; omit --sample to train all of them"
    )


def configure(base: TrainConfig, point: Overrides) -> TrainConfig:
    """The configuration of a point: the base with the point's values.

    Raises:
        ConfigError: the combination is invalid; the message names the point.
    """
    try:
        config = configs.from_flat({**_values_for(base, point), **point})
        configs.check(config)
    except ConfigError as error:
        raise ConfigError(
            f"configuration {label(point)}: {error}" if point else str(error)
        ) from error
    return config


def _values_for(base: TrainConfig, point: Overrides) -> dict[str, Any]:
    """The values of the base; for another algorithm, its own fields keep their defaults."""
    values = configs.to_flat(base)
    if point.get("algorithm", base.algorithm) != base.algorithm:
        names = {f.name for f in dataclasses.fields(TrainConfig)}
        values = {n: v for n, v in values.items() if n in names}
    return values


def label(point: Overrides) -> str:
    """A point as text, "learning_rate=0.001 clip_eps=0.2"; "baseline" if nothing varies."""
    return " ".join(f"{name}={show(value)}" for name, value in point.items()) or "baseline"


def _draws(dimensions: int, count: int, sampler: str, seed: int) -> np.ndarray:
    """[count, dimensions], random numbers in [0, 1)."""
    rng = np.random.default_rng(seed)
    if sampler == "uniform":
        return rng.random((count, dimensions))
    from scipy.stats import qmc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # balance at powers of two is not required
        return qmc.Sobol(dimensions, rng=rng).random(count)


def _values(name: str, text: str, field: Any) -> Range | list[Any]:
    scale, *ends = text.split(":")
    if scale in SCALES and ends:
        if not is_float(field):
            raise ConfigError(
                f"--vary {name}={text}: only real numbers have a range; list the values"
            )
        return _range(name, text, scale, ends)
    words = re.split(r",(?![^()]*\))", text)  # ignore commas within parentheses
    values = [_value(name, word.strip(), field) for word in words]
    if len({repr(v) for v in values}) < len(values):
        raise ConfigError(f"--vary {name}={text} repeats a value")
    return values


def _range(name: str, text: str, scale: str, ends: list[str]) -> Range:
    try:
        low, high = float(ends[0]), float(ends[1])
        count = int(ends[2]) if len(ends) == 3 else None
        if len(ends) > 3:
            raise ValueError
    except (ValueError, IndexError) as error:
        raise ConfigError(
            f"--vary {name}={text}: a range is {scale}:low:high or {scale}:low:high:count"
        ) from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"--vary {name}={text}: low must be less than high, both finite")
    if scale == "log" and low <= 0:
        raise ConfigError(f"--vary {name}={text}: the lower bound of a log range must be above 0")
    if count is not None and count < 2:
        raise ConfigError(f"--vary {name}={text}: a grid must have at least two values")
    return Range(scale, low, high, count)


def _value(name: str, word: str, field: Any) -> Any:
    """Parse a text as the type of the option."""
    try:
        return parse(field, word)
    except ConfigError as error:
        raise ConfigError(f"--vary {error}") from error
    except (ValueError, OverflowError) as error:
        allowed = SCHEDULED if kind(field).scheduled else f"of type {kind(field)}"
        raise ConfigError(f"--vary {name}: {word!r} is not {allowed}") from error
