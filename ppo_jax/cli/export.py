"""`ppo-jax export`: the policy of a run as a file that needs no ppo_jax."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, NoReturn

from ppo_jax.cli.errors import Work, exit_prepared
from ppo_jax.cli.flags import NAMED_AGAIN, NamedAgain, positional
from ppo_jax.runs import terminal

PROGRAM = "ppo-jax export"


def main(arguments: list[str] | None = None) -> NoReturn:
    """`ppo-jax export`, the same as `python -m ppo_jax.export`."""
    words = sys.argv[1:] if arguments is None else arguments
    exit_prepared(lambda: positional(prepared, words, PROGRAM))


def prepared(
    run: Path,
    format: Literal["stablehlo", "onnx", "safetensors"] = "stablehlo",
    out: Path | None = None,
    checkpoint: str = "latest",
    *,
    code: NamedAgain = NAMED_AGAIN,
) -> Work:
    """Write the policy of a run to a file that needs no ppo_jax, and verify the file.

    Args:
        run: folder of the run, .safetensors file, or agent of the zoo, such as zoo:cartpole.
        format: file format: stablehlo (needs JAX alone, for CPU and CUDA), onnx, or safetensors
            (weights and configuration).
        out: name of the file; None: policy.FORMAT in the folder of the run. An agent that is not
            in a folder needs a name.
        checkpoint: checkpoint to restore: latest, best, or the number of an update.
        code: code of the run, named again.

    Returns:
        The export. It returns exit code 0, or 1 for a file whose actions differ from the run's.
    """
    return lambda: _export(run, format, out, checkpoint, named=dataclasses.asdict(code))


def _export(
    run: Path, format: str, out: Path | None, checkpoint: str, *, named: dict[str, Any]
) -> int:
    from ppo_jax.export import export, verify

    try:
        found = export(run, format, out, checkpoint, **named)
    except verify.NotTheSame as error:
        terminal.complain(f"error: {error}")
        return 1
    for path in found.files:
        terminal.say(f"wrote {path} ({path.stat().st_size:,} bytes)")
    terminal.say(
        f"verified: {found.observations} observations, max difference "
        f"{found.max_difference:.3g} (reloaded in a fresh process)"
    )
    return 0
