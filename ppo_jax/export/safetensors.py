"""safetensors: the weights and the statistics by name; the header has the configuration."""

from pathlib import Path

from ppo_jax.agent import Parts, saved_arrays
from ppo_jax.export import interface
from ppo_jax.runs import weights

PACKAGES: tuple[str, ...] = ()


def check(parts: Parts) -> None:
    """Every policy is its weights."""


def write(parts: Parts, path: Path) -> list[Path]:
    """Weights as `params.actor.body.Dense_0.kernel`, statistics as `obs.mean`.

    Args:
        parts: of the agent.
        path: of the file, which `ppo_jax.load` reads if it ends in .safetensors.

    Returns:
        The file.
    """
    weights.write(path, saved_arrays(parts), interface.describe(parts))
    return [path]
