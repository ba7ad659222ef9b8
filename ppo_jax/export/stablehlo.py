"""StableHLO: a program for any number of observations, on CPU and CUDA, that needs jax alone."""

from pathlib import Path

import jax

from ppo_jax.agent import Parts
from ppo_jax.export import interface
from ppo_jax.runs import files

PLATFORMS = ("cpu", "cuda")
PACKAGES = ("flatbuffers",)  # which jax.export writes with


def check(parts: Parts) -> None:
    """Refuse what is no function of one observation in 32 bits."""
    interface.refuse_memory(parts, "stablehlo")
    interface.refuse_64_bits(parts, "stablehlo")


def write(parts: Parts, path: Path) -> list[Path]:
    """The program, as `jax.export` serialises it, and beside it PATH.json, which describes it.

    Args:
        parts: of the agent.
        path: of the file.

    Returns:
        The files.
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
