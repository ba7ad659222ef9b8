"""Suite `ppo_jax`: environments of this package."""

import importlib
from typing import Any

MODULES = {
    "CartPoleContinuous-v1": "ppo_jax.envs.cartpole_continuous",
    "CartPolePositions-v1": "ppo_jax.envs.cartpole_positions",
    "Pong": "ppo_jax.envs.pong",
}


def names() -> list[str]:
    """Ids of the suite."""
    return list(MODULES)


def make(env_id: str, **kwargs: Any) -> Any:
    """Make the environment with this id; its module is imported now."""
    return importlib.import_module(MODULES[env_id]).make(**kwargs)
