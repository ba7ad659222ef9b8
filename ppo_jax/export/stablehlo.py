"""Export to StableHLO: a program for any batch size, on CPU and CUDA, that requires only JAX."""

from pathlib import Path

import jax

from ppo_jax.agent import Parts
from ppo_jax.export import interface
from ppo_jax.runs import files

PLATFORMS = ("cpu", "cuda")
PACKAGES = ("flatbuffers",)  # required by jax.export


def check(parts: Parts) -> None:
    """Refuse recurrent policies and integers that do not fit in 32 bits."""
    interface.refuse_memory(parts, "stablehlo")
    interface.refuse_64_bits(parts, "stablehlo")


def write(parts: Parts, path: Path) -> list[Path]:
    """Write the program, serialised by `jax.export`, and its description PATH.json.

    Args:
        parts: parts of the agent.
        path: path of the file.

    Returns:
        The paths of both files.
    """
    (batch,) = jax.export.symbolic_shape("N")
    policy = jax.jit(interface.function(parts))
    exported = jax.export.export(policy, platforms=PLATFORMS)(*interface.shapes(parts, batch))
    files.write_bytes(path, bytes(exported.serialize()))
    header = path.with_name(f"{path.name}.json")
    content = {
        "format": "jax.export",
        "platforms": PLATFORMS,
        "calling_convention_version": exported.calling_convention_version,
        **interface.describe(parts),
    }
    files.write_json(header, content)
    return [path, header]
