"""Checked access to the values of a config.json of a Hugging Face folder."""

from typing import Any

from ppo_jax.config.options import did_you_mean

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
}


class ModelError(ValueError):
    """A folder that cannot be loaded as a model; the message names the fault and the remedy."""


def activation(name: Any) -> str:
    """The name of an activation in `decoder_config.ACTIVATIONS`."""
    if not isinstance(name, str) or name not in ACTIVATION_NAMES:
        raise ModelError(
            f"activation {name!r} is not supported; {did_you_mean(str(name), ACTIVATION_NAMES)}"
        )
    return ACTIVATION_NAMES[name]


def value_of(raw: dict[str, Any], name: str, default: Any) -> Any:
    """The value of a name; the default if it is missing or null.

    Raises:
        ModelError: the value is missing and there is no default.
    """
    if raw.get(name) is not None:
        return raw[name]
    if default is None:
        raise ModelError(f"config.json has no {name}" + (": it is null" if name in raw else ""))
    return default


def whole(raw: dict[str, Any], name: str, default: int | None = None, most: int = 2**31) -> int:
    """A whole number from 1 to `most`."""
    value = value_of(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ModelError(f"{name} is {value!r}; it must be a whole number from 1 to {most:,}")
    return value


def real(raw: dict[str, Any], name: str, default: float | None = None) -> float:
    """A finite number >= 0."""
    value = value_of(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise ModelError(f"{name} is {value!r}; it must be a finite number >= 0")
    return float(value)


def positive(raw: dict[str, Any], name: str, default: float | None = None) -> float:
    """A finite number > 0."""
    value = real(raw, name, default)
    if not value:
        raise ModelError(f"{name} is {value!r}; it must be greater than 0")
    return value


def switch(raw: dict[str, Any], name: str, default: bool) -> bool:
    """true or false."""
    value = value_of(raw, name, default)
    if not isinstance(value, bool):
        raise ModelError(f"{name} is {value!r}; it must be true or false")
    return value


def token(raw: dict[str, Any], name: str) -> int | None:
    """A token id, or None for a token that the model does not have."""
    return None if raw.get(name) is None else token_id(raw[name], name)


def token_id(value: Any, name: str) -> int:
    """A token id."""
    # Some programs write -1 for a token that the model does not have.
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**31:
        raise ModelError(f"{name} is {value!r}; it must be a token id or a list of token ids")
    return value


def part(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """An object; an empty one if it is missing or null."""
    value = raw.get(name) or {}
    if not isinstance(value, dict):
        raise ModelError(f"{name} is {value!r}; it must be an object")
    return value


def optional(raw: dict[str, Any], name: str) -> float | None:
    """A positive number; None if it is missing or null."""
    return None if raw.get(name) is None else positive(raw, name)


def numbers(raw: dict[str, Any], name: str) -> tuple[float, ...]:
    """A list of positive numbers."""
    values = value_of(raw, name, None)
    if not isinstance(values, list) or not values:
        raise ModelError(f"{name} is {values!r}; it must be a list of positive numbers")
    found = tuple(real({name: x}, name) for x in values)
    if not all(found):
        raise ModelError(f"{name} contains 0; it must be a list of positive numbers")
    return found
