"""The errors with which a configuration that cannot work is refused."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that cannot work: what was given, what is allowed, what to do."""


class InvalidEnvironment(TypeError):
    """An object that cannot be used as an environment; the message names what it lacks."""


class UnknownEnvironment(ValueError):
    """No suite has an environment of this name, or its suite is not installed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a message: the nearest known names, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
