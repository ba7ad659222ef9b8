"""Whether a value is a JAX tracer, without importing JAX: options are read before JAX is needed."""

import sys
from typing import Any


def is_tracer(value: Any) -> bool:
    """Whether a value is a tracer of JAX; there are none while JAX is not imported."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)
