"""safetensors: the weights and the statistics by name; the header has the configuration."""

from pathlib import Path

from ppo_jax.agent import Parts, saved_arrays
from ppo_jax.config import CODE, ConfigError, references
from ppo_jax.export import interface
from ppo_jax.runs import weights

PACKAGES: tuple[str, ...] = ()


def check(parts: Parts) -> None:
    """Every policy is its weights, if what they belong to can be made again by name.

    Raises:
        ConfigError: it cannot: an object that was given from Python has no name.
    """
    names = [str(getattr(parts.config, name)) for name in CODE]
    objects = [name for name in names if references.is_text(name)]
    if objects:
        raise ConfigError(
            f"a file of format safetensors names what its weights belong to, and {objects[0]} has "
            "no name to import it by; put it into a module, or use --format stablehlo"
        )


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
