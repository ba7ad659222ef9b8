"""Shape checks for functions that users call: what would be broadcast by accident is refused.

Shapes are known while a program is traced, so a check costs nothing when the program runs. A
ValueError, as for every other bad input, and not an assertion.
"""

from typing import Any

import jax
import numpy as np

Shape = tuple[int, ...]


def same(function: str, /, **arrays: Any) -> Shape:
    """The common shape of several arrays. Scalars fit every shape, None is an absent argument.

    Args:
        function: name of the caller, for the message.
        **arrays: arrays or numbers by argument name.

    Returns:
        The shape; () if all of them are scalars.

    Raises:
        ValueError: two of the arrays differ in shape.
    """
    shapes = {name: np.shape(x) for name, x in arrays.items() if x is not None}
    distinct = {shape for shape in shapes.values() if shape != ()}
    if len(distinct) > 1:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if shape != ())
        raise ValueError(f"{function}: arrays must have the same shape, but they are {given}")
    return distinct.pop() if distinct else ()


def exact(function: str, expected: Shape, of: str, /, **arrays: Any) -> None:
    """Refuse arrays whose shape is another one, scalars among them.

    Args:
        function: name of the caller, for the message.
        expected: the only shape that is allowed.
        of: what has that shape, for the message.
        **arrays: arrays or numbers by argument name; None is an absent argument.

    Raises:
        ValueError: an array has another shape.
    """
    for name, x in arrays.items():
        if x is not None and np.shape(x) != expected:
            raise ValueError(
                f"{function}: {name} must have the shape {expected} of {of}, but has {np.shape(x)}"
            )


def leading(function: str, name: str, x: Any, element: Shape) -> Shape:
    """The batch dimensions of an array of elements.

    Args:
        function: name of the caller, for the message.
        name: of the argument.
        x: [B..., *element].
        element: shape of one element.

    Returns:
        B...

    Raises:
        ValueError: the shape of the array does not end with that of an element.
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
    """Refuse scalars where the leading axis is time.

    Raises:
        ValueError: the shape is ().
    """
    if shape == ():
        raise ValueError(f"{function}: arrays must be [T, ...] with T steps, not scalars")


def rank(function: str, form: str, /, **arrays: Any) -> None:
    """Refuse arrays with another number of dimensions.

    Args:
        function: name of the caller, for the message.
        form: the dimensions as the documentation writes them, e.g. "[B, L]".
        **arrays: arrays by argument name.

    Raises:
        ValueError: an array has more dimensions or fewer.
    """
    for name, x in arrays.items():
        if np.ndim(x) != form.count(",") + 1:
            raise ValueError(f"{function}: {name} must be {form}, but has the shape {np.shape(x)}")


def rows(function: str, count: int, of: str, tree: Any, /) -> None:
    """Refuse a tree in which not all leaves are [count, ...].

    Args:
        function: name of the caller, for the message.
        count: number of rows.
        of: what has that many, for the message.
        tree: pytree of arrays.

    Raises:
        ValueError: a leaf with another number of rows, which the message names.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if np.shape(x)[:1] != (count,):
            leaf = jax.tree_util.keystr(path)
            raise ValueError(
                f"{function}: rows{leaf} has the shape {np.shape(x)}, "
                f"but {of} is one of {count} rows"
            )
