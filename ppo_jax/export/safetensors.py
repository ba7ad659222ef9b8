"""Export to safetensors: named weights and running statistics; the configuration as header."""

from pathlib import Path

from ppo_jax.agent import Parts, saved_arrays
from ppo_jax.config import CODE, ConfigError, references
from ppo_jax.export import interface
from ppo_jax.runs import weights

PACKAGES: tuple[str, ...] = ()


def check(parts: Parts) -> None:
    """Refuse a policy that cannot be rebuilt from names in its configuration.

    Raises:
        ConfigError: the run uses an object that was given from Python and has no import path.
    """
    names = [str(getattr(parts.config, name)) for name in CODE]
    objects = [name for name in names if references.is_text(name)]
    if objects:
        raise ConfigError(
            f"a file of format safetensors refers to code by name, and {objects[0]} cannot be "
            "imported by name; put it into a module, or use --format stablehlo"
        )


def write(parts: Parts, path: Path) -> list[Path]:
    """Write weights, such as `params.actor.body.Dense_0.kernel`, and statistics, as `obs.mean`.

    Args:
        parts: parts of the agent.
        path: path of the file; `ppo_jax.load` can read it if it ends in .safetensors.

    Returns:
        A list with the path of the file.
    """
    weights.write(path, saved_arrays(parts), interface.describe(parts))
    return [path]
