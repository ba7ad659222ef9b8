"""The errors with which a configuration that cannot work is refused."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that cannot work: what was given, what is allowed, what to do."""


class InvalidEnvironment(TypeError):
    """An object that cannot be used as an environment; the message names what it lacks."""


class UnknownEnvironment(ValueError):
    """No suite has an environment of this name, or its suite is not installed."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """A hint for a message: the nearest known names, or all of them.

    Args:
        name: the unknown name.
        known: the names that there are.
        cutoff: smallest similarity of a suggested name, between 0 and 1.
    """
    known = list(known)
    plain = lambda text: text.lower().replace("-", "_")
    near = [other for other in known if plain(other) == plain(name)]
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
