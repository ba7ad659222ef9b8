"""Arithmetic expressions as tokens: parsed and evaluated in exact integer arithmetic.

The grammar, in which a number is a sequence of digits:

    sum = product (("+" | "-") product)*
    product = factor (("*" | "/") factor)*
    factor = number | "(" sum ")"

A division is valid only if it leaves no remainder.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppo_jax.rlhf.tasks import tokens

CHARACTERS = "()*+-/0123456789"
# Classes of tokens; those from ADD on are binary operations.
OTHER, DIGIT, OPEN, CLOSE, END, ADD, SUBTRACT, MULTIPLY, DIVIDE = range(9)
_CLASSES = {"(": OPEN, ")": CLOSE, "+": ADD, "-": SUBTRACT, "*": MULTIPLY, "/": DIVIDE}
# How strongly the classes bind; END and CLOSE let everything before them be evaluated.
PRECEDENCE = np.asarray([0, 0, 0, 0, 0, 1, 1, 2, 2], np.int32)
NONE = -1  # in place of a number
LARGEST = 10**6  # larger numbers have this value, so that they are no number of a task


class Expression(NamedTuple):
    """The result of an evaluation.

    Attributes:
        valid: [] bool, whether the tokens are an expression and all its divisions are exact.
        value: [] int32, value of the expression; arbitrary if it is not valid. It is exact if the
            values of all parts of the expression are below 2³¹.
        is_number: [R] bool, True at the last digit of each number.
        numbers: [R] int32, the numbers where `is_number` is True.
    """

    valid: jax.Array
    value: jax.Array
    is_number: jax.Array
    numbers: jax.Array


class _Machine(NamedTuple):
    """The state of the parser: operator precedence with two stacks.

    Attributes:
        place: [] position of the next token.
        values: [R] stack of values.
        num_values: [] number of values on the stack.
        operators: [R] stack of the classes of operations and opening brackets.
        num_operators: [] number of operators on the stack.
        operand: [] bool, whether a number or an opening bracket must follow.
        valid: [] bool, whether the tokens so far begin an expression.
    """

    place: jax.Array
    values: jax.Array
    num_values: jax.Array
    operators: jax.Array
    num_operators: jax.Array
    operand: jax.Array
    valid: jax.Array


def evaluate(ids: jax.Array, vocabulary: str) -> Expression:
    """Parse and evaluate an expression under jit.

    The parser reads each token once and evaluates each operation once: it stops after at most 2 R
    steps, which one scan computes.

    Args:
        ids: [R] token ids; the expression ends before the first <eos>, and is not valid without.
        vocabulary: characters of the task, with those of CHARACTERS. Static.

    Source: Dijkstra 1961, Algol 60 Translation (the shunting-yard algorithm).
    """
    length = ids.shape[0]
    end = tokens.end(ids)
    classes = _classes(ids, end, vocabulary)
    is_number, numbers = _numbers(ids - tokens.id_of(vocabulary, "0"), classes)
    zeros, zero = jnp.zeros((length,), jnp.int32), jnp.int32(0)
    start = _Machine(zero, zeros, zero, zeros, zero, jnp.bool_(True), end < length)

    def step(machine: _Machine, _: None) -> tuple[_Machine, None]:
        return _step(machine, classes, is_number, numbers), None

    machine = jax.lax.scan(step, start, None, length=2 * length)[0]
    done = (machine.place == end) & (machine.num_operators == 0) & ~machine.operand
    return Expression(machine.valid & done, machine.values[0], is_number, numbers)


def _classes(ids: jax.Array, end: jax.Array, vocabulary: str) -> jax.Array:
    """[R] classes of the tokens, END from the first <eos> on."""
    table = np.full((tokens.size(vocabulary),), OTHER, np.int32)
    for character in CHARACTERS:
        table[tokens.id_of(vocabulary, character)] = _CLASSES.get(character, DIGIT)
    # A model may have more ids than the task has tokens.
    found = jnp.asarray(table).at[ids].get(mode="fill", fill_value=OTHER)
    return jnp.where(jnp.arange(ids.shape[0]) < end, found, END)


def _numbers(digits: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([R] bool, last digits of the numbers; [R] the numbers at these places)."""
    is_digit = classes == DIGIT

    def add(number: jax.Array, inputs: Any) -> tuple[jax.Array, jax.Array]:
        digit, counts = inputs
        number = jnp.where(counts, jnp.minimum(10 * number + digit, LARGEST), 0)
        return number, number

    _, numbers = jax.lax.scan(add, jnp.int32(0), (digits, is_digit))
    return is_digit & ~jnp.append(is_digit[1:], False), numbers


def _step(
    machine: _Machine, classes: jax.Array, is_number: jax.Array, numbers: jax.Array
) -> _Machine:
    """Evaluate the last operation if the next token lets it be evaluated; otherwise read on."""
    kind = classes[machine.place]
    top = machine.operators[machine.num_operators - 1]
    top = jnp.where(machine.num_operators > 0, top, OTHER)
    precedence = jnp.asarray(PRECEDENCE)
    ends = (kind == CLOSE) | (kind == END) | (kind >= ADD)
    reduces = ~machine.operand & ends & (top >= ADD) & (precedence[top] >= precedence[kind])
    number = jnp.where(is_number[machine.place], numbers[machine.place], NONE)
    read = _read(machine, kind, top, number)
    return jax.tree.map(lambda a, b: jnp.where(reduces, a, b), _reduce(machine, top), read)


def _reduce(machine: _Machine, operation: jax.Array) -> _Machine:
    """Replace the last two values by the result of the last operation."""
    second = machine.num_values - 1
    a, b = machine.values[second - 1], machine.values[second]
    divisor = jnp.where(b == 0, 1, b)
    exact = (b != 0) & (a % divisor == 0)
    results = jnp.stack([a + b, a - b, a * b, a // divisor])
    return machine._replace(
        values=machine.values.at[second - 1].set(results[operation - ADD]),
        num_values=second,
        num_operators=machine.num_operators - 1,
        valid=machine.valid & ((operation != DIVIDE) | exact),
    )


def _read(machine: _Machine, kind: jax.Array, top: jax.Array, number: jax.Array) -> _Machine:
    """Read the next token: a bracket, an operation, or the last digit of a number."""
    size = machine.values.shape[0]
    is_number = number != NONE
    opens, closes, operation = kind == OPEN, kind == CLOSE, kind >= ADD
    inside = (kind == DIGIT) & ~is_number  # a digit before the last one of its number
    begins = opens | is_number
    allowed = (
        inside
        | (begins & machine.operand)
        | (operation & ~machine.operand)
        | (closes & ~machine.operand & (top == OPEN))
        | (kind == END)
    )
    push = opens | operation
    values = machine.values.at[jnp.where(is_number, machine.num_values, size)]
    operators = machine.operators.at[jnp.where(push, machine.num_operators, size)]
    return _Machine(
        place=machine.place + (kind != END),
        values=values.set(number, mode="drop"),
        num_values=machine.num_values + is_number,
        operators=operators.set(kind, mode="drop"),
        num_operators=machine.num_operators + push - (closes & allowed),
        operand=jnp.where(is_number, False, jnp.where(operation, True, machine.operand)),
        valid=machine.valid & allowed,
    )


def evaluate_text(text: str) -> tuple[int | None, list[int]]:
    """Parse and evaluate an expression in plain Python, by recursive descent.

    Returns:
        (the value, the numbers of the expression); the value is None if the text is not an
        expression or a division is not exact.
    """
    parts = re.findall("[0-9]+|.", text, re.DOTALL)
    numbers = [int(part) for part in parts if re.fullmatch("[0-9]+", part)]
    try:
        value = _sum(parts)
    except (_Invalid, RecursionError):
        return None, numbers
    return (None if parts else value), numbers


class _Invalid(Exception):
    """Raised where a text is not an expression, or a division is not exact."""


def _sum(parts: list[str]) -> int:
    """The value of the sum that the parts begin with; its parts are removed."""
    value = _product(parts)
    while parts and parts[0] in "+-":
        plus = parts.pop(0) == "+"
        term = _product(parts)
        value += term if plus else -term
    return value


def _product(parts: list[str]) -> int:
    value = _factor(parts)
    while parts and parts[0] in "*/":
        times = parts.pop(0) == "*"
        factor = _factor(parts)
        if not times and (factor == 0 or value % factor):
            raise _Invalid
        value = value * factor if times else value // factor
    return value


def _factor(parts: list[str]) -> int:
    part = parts.pop(0) if parts else ""
    if part == "(":
        value = _sum(parts)
        if not parts or parts.pop(0) != ")":
            raise _Invalid
        return value
    if not re.fullmatch("[0-9]+", part):
        raise _Invalid
    return int(part)
