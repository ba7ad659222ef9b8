"""The registry of algorithms: a name, and the module that has its Config and make."""

from types import ModuleType

from ppo_jax.algorithms import ppo

ALGORITHMS: dict[str, ModuleType] = {"ppo": ppo}
