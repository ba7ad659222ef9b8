"""ONNX, through jax2onnx: a graph for onnxruntime and what else reads it, without jax."""

import contextlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import jax

from ppo_jax.agent import Parts
from ppo_jax.config import ConfigError
from ppo_jax.export import interface
from ppo_jax.runs import files

# Of 2024: what runs ONNX today knows it.
OPSET = 21
PACKAGES = ("jax2onnx", "onnxruntime")


def check(parts: Parts) -> None:
    """Refuse what is no function of one observation."""
    interface.refuse_memory(parts, "onnx")


def write(parts: Parts, path: Path) -> list[Path]:
    """The graph, its inputs and output by name, its batch dimension N free.

    Args:
        parts: of the agent.
        path: of the file.

    Returns:
        The file.

    Raises:
        ConfigError: jax2onnx has no counterpart for something in the network.
    """
    ports = interface.inputs(parts)
    try:
        model = _convert(parts, ports)
    except Exception as error:  # whatever a converter meets
        text = str(error).strip() or type(error).__name__
        raise ConfigError(
            f"jax2onnx cannot convert this policy: {text.splitlines()[0]}; use --format stablehlo "
            "or safetensors"
        ) from error
    for name, value in interface.describe(parts).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    files.write_bytes(path, model.SerializeToString())
    return [path]


def _convert(parts: Parts, ports: list[interface.Port]) -> Any:
    # jax2onnx talks while it is imported and while it works: tracebacks of plugins that no policy
    # needs.
    logging.disable(logging.WARNING)
    try:
        import jax2onnx

        (batch,) = jax.export.symbolic_shape("N")
        with contextlib.redirect_stdout(io.StringIO()):
            return jax2onnx.to_onnx(
                interface.function(parts),
                [jax.ShapeDtypeStruct((batch, *p.shape), p.dtype) for p in ports],
                model_name="policy",
                opset=OPSET,
                input_names=[p.name for p in ports],
                output_names=[interface.output(parts).name],
            )
    finally:
        logging.disable(logging.NOTSET)
