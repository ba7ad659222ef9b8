"""The precision of matrix products and convolutions, set for functions instead of for the process.

JAX reads `jax_default_matmul_precision` while it traces an operation, the operations of a backward
pass included, and the setting is part of the key of each cache of compiled programs. A function
called under a setting of its own is therefore traced with it wherever the function is called.
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
    """A function whose operations are traced with a precision."""

    precision: str
    function: Callable[..., Any]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with jax.default_matmul_precision(self.precision):
            return self.function(*arguments, **named)


def apply(precision: str, functions: T) -> T:
    """Functions whose products have a precision, whatever JAX's own setting is.

    Args:
        precision: name in PRECISIONS; "default" leaves JAX's own setting, and the functions, alone.
        functions: one, or a pytree of them, such as a Policy; a precision that was applied earlier
            is replaced, and what cannot be called is returned as it is.
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
    """The precision that products have: for "default" JAX's own setting, if there is one."""
    if precision != "default":
        return precision
    return str(jax.config.jax_default_matmul_precision or "default")  # type: ignore[attr-defined]
