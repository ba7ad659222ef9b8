"""Shape checks for public functions, which reject arrays that would be broadcast by accident.

Shapes are static while a program is traced, so the checks take no time when the program runs. They
raise ValueError, as for every other invalid argument, rather than AssertionError.
"""

from typing import Any

import jax
import numpy as np

Shape = tuple[int, ...]


def same(function: str, /, **arrays: Any) -> Shape:
    """The common shape of several arrays. Scalars match every shape; None is a missing argument.

    Args:
        function: name of the caller, for the error message.
        **arrays: arrays or numbers by argument name.

    Returns:
        The common shape; () if all arrays are scalars.

    Raises:
        ValueError: if two of the arrays have different shapes.
    """
    shapes = {name: np.shape(x) for name, x in arrays.items() if x is not None}
    distinct = {shape for shape in shapes.values() if shape != ()}
    if len(distinct) > 1:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if shape != ())
        raise ValueError(f"{function}: arrays must have the same shape, but they are {given}")
    return distinct.pop() if distinct else ()


def exact(function: str, expected: Shape, of: str, /, **arrays: Any) -> None:
    """Reject arrays, including scalars, that do not have the expected shape.

    Args:
        function: name of the caller, for the error message.
        expected: the only allowed shape.
        of: name of the object that has this shape, for the error message.
        **arrays: arrays or numbers by argument name; None is a missing argument.

    Raises:
        ValueError: if an array has another shape.
    """
    for name, x in arrays.items():
        if x is not None and np.shape(x) != expected:
            raise ValueError(
                f"{function}: {name} must have the shape {expected} of {of}, but has {np.shape(x)}"
            )


def leading(function: str, name: str, x: Any, element: Shape) -> Shape:
    """The batch dimensions of an array of elements.

    Args:
        function: name of the caller, for the error message.
        name: name of the argument, for the error message.
        x: [B..., *element] array.
        element: shape of one element.

    Returns:
        The batch dimensions B...

    Raises:
        ValueError: if the shape of the array does not end with the shape of an element.
    """
    shape = np.shape(x)
    batch = shape[: max(0, len(shape) - len(element))]
    if batch + element != shape:
        raise ValueError(
            f"{function}: the shape of {name} must end with the {element} of one element, "
            f"but is {shape}"
        )
    return batch


def time_axis(function: str, shape: Shape) -> None:
    """Reject scalars where the leading axis is time.

    Raises:
        ValueError: if the shape is ().
    """
    if shape == ():
        raise ValueError(f"{function}: arrays must be [T, ...] with T steps, not scalars")


def rank(function: str, form: str, /, **arrays: Any) -> None:
    """Reject arrays with the wrong number of dimensions.

    Args:
        function: name of the caller, for the error message.
        form: dimensions as the documentation writes them, e.g. "[B, L]".
        **arrays: arrays by argument name.

    Raises:
        ValueError: if an array has more or fewer dimensions.
    """
    for name, x in arrays.items():
        if np.ndim(x) != form.count(",") + 1:
            raise ValueError(f"{function}: {name} must be {form}, but has the shape {np.shape(x)}")


def rows(function: str, count: int, of: str, tree: Any, /) -> None:
    """Reject a pytree with leaves that are not [count, ...].

    Args:
        function: name of the caller, for the error message.
        count: number of rows.
        of: name of the object with that number of rows, for the error message.
        tree: pytree of arrays.

    Raises:
        ValueError: if a leaf has another number of rows; the message names the leaf.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if np.shape(x)[:1] != (count,):
            leaf = jax.tree_util.keystr(path)
            raise ValueError(
                f"{function}: rows{leaf} has the shape {np.shape(x)}, "
                f"but {of} requires {count} rows"
            )
