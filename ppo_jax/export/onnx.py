"""Export to ONNX with jax2onnx: a graph for onnxruntime and other tools, without JAX."""

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

# Operator set version from 2024, which current runtimes support.
OPSET = 21
PACKAGES = ("jax2onnx", "onnxruntime")


def check(parts: Parts) -> None:
    """Refuse recurrent policies and integers that do not fit in 32 bits."""
    interface.refuse_memory(parts, "onnx")
    interface.refuse_64_bits(parts, "onnx")


def write(parts: Parts, path: Path) -> list[Path]:
    """Write the graph with named inputs and output and a free batch dimension N.

    Inputs and output have the types of the environment, including int64 and float64.

    Args:
        parts: parts of the agent.
        path: path of the file.

    Returns:
        A list with the path of the file.

    Raises:
        ConfigError: jax2onnx cannot convert an operation of the network.
    """
    try:
        model = _convert(parts)
    except Exception as error:  # the converter may raise any exception
        text = str(error).strip() or type(error).__name__
        raise ConfigError(
            f"jax2onnx cannot convert this policy: {text.splitlines()[0]}; use --format stablehlo "
            "or safetensors"
        ) from error
    _in_the_types_of_the_environment(model.graph, parts)
    for name, value in interface.describe(parts).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    files.write_bytes(path, model.SerializeToString())
    return [path]


def _convert(parts: Parts) -> Any:
    # jax2onnx prints text while it is imported and while it works, such as tracebacks of plugins
    # that are not needed.
    logging.disable(logging.WARNING)
    try:
        import jax2onnx

        (batch,) = jax.export.symbolic_shape("N")
        with contextlib.redirect_stdout(io.StringIO()):
            return jax2onnx.to_onnx(
                interface.function(parts),
                interface.shapes(parts, batch),
                model_name="policy",
                opset=OPSET,
                input_names=[p.name for p in interface.inputs(parts)],
                output_names=[interface.output(parts).name],
            )
    finally:
        logging.disable(logging.NOTSET)


def _in_the_types_of_the_environment(graph: Any, parts: Parts) -> None:
    """Insert casts at inputs and at the output where the environment uses 64-bit types."""
    from onnx import helper

    for value, port in zip(graph.input, interface.inputs(parts), strict=True):
        if port.dtype == port.program_dtype:
            continue
        inner = f"{port.name}.in_32_bits"
        for node in graph.node:
            node.input[:] = [inner if name == port.name else name for name in node.input]
        kind = helper.np_dtype_to_tensor_dtype(port.program_dtype)
        graph.node.insert(0, helper.make_node("Cast", [port.name], [inner], to=kind))
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(port.dtype)
    (value,), port = graph.output, interface.output(parts)
    if port.dtype != port.program_dtype:
        inner = f"{value.name}.in_32_bits"
        for node in graph.node:
            node.output[:] = [inner if name == value.name else name for name in node.output]
            node.input[:] = [inner if name == value.name else name for name in node.input]
        kind = helper.np_dtype_to_tensor_dtype(port.dtype)
        graph.node.append(helper.make_node("Cast", [inner], [value.name], to=kind))
        value.type.tensor_type.elem_type = kind
