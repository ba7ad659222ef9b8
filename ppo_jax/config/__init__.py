"""The configuration of a run: options with types and bounds, `TrainConfig`, presets.

The names of `ppo_jax.config.train` are imported when they are used: an algorithm describes its own
options with `ppo_jax.config.options`, and TrainConfig needs the algorithms.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ppo_jax.config import commands, foreign, installation, references, standard
from ppo_jax.config.options import ConfigError

if TYPE_CHECKING:
    from ppo_jax.config.train import *  # noqa: F403

__all__ = ["ConfigError", "commands", "foreign", "installation", "references", "standard"]


def __getattr__(name: str) -> Any:
    """The public names of `ppo_jax.config.train`."""
    if not name.startswith("_"):
        module = importlib.import_module("ppo_jax.config.train")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names of the package, with those of `ppo_jax.config.train`."""
    module = importlib.import_module("ppo_jax.config.train")
    return sorted({*globals(), *(name for name in vars(module) if not name.startswith("_"))})
