"""The precision of matrix products and convolutions, set per function rather than per process.

JAX reads `jax_default_matmul_precision` while it traces an operation, including the operations of
a backward pass, and the setting is part of the key of every cache of compiled programs. A function
that sets it while it is called is therefore always traced with that precision.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from ppo_jax.config.standard import PRECISIONS as PRECISIONS
from ppo_jax.config.standard import matmul_precision as matmul_precision

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Traced:
    """A function whose operations are traced with a given precision."""

    precision: str
    function: Callable[..., Any]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with jax.default_matmul_precision(self.precision):
            return self.function(*arguments, **named)


def apply(precision: str, functions: T) -> T:
    """Functions that compute matrix products with a given precision, whatever JAX's setting is.

    Args:
        precision: name in PRECISIONS; "default" returns the functions unchanged and leaves JAX's
            own setting in effect.
        functions: a function or a pytree of functions, such as a Policy. A precision that was
            applied earlier is replaced; leaves that cannot be called are returned unchanged.
    """
    if precision == "default":
        return functions

    def traced(x: Any) -> Any:
        if not callable(x):
            return x
        return _Traced(precision, x.function if isinstance(x, _Traced) else x)

    return jax.tree.map(traced, functions, is_leaf=callable)


def of(function: Callable[..., Any]) -> str:
    """The precision that was applied to a function; "default" if none was."""
    return function.precision if isinstance(function, _Traced) else "default"


def in_effect(precision: str) -> str:
    """The precision in effect; for "default" this is JAX's own setting, if it is set."""
    if precision != "default":
        return precision
    return str(jax.config.jax_default_matmul_precision or "default")  # type: ignore[attr-defined]
