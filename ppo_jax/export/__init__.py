"""Export of trained policies to StableHLO, ONNX or safetensors, with a check of the written file.

`python -m ppo_jax.export RUN --format FORMAT` calls `export`.
"""

from typing import TYPE_CHECKING

from ppo_jax.lazy import attach

if TYPE_CHECKING:
    from ppo_jax.export.files import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]

# The names are imported when they are first used, so that the command line need not import JAX.
__getattr__, __dir__ = attach(__name__, {"files": ("FORMATS", "Exported", "export")})
