"""The tables of docs/reliability.md list all faults, each with a test."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text()
# A run is one process, so that no other process of it can be lost.
WITHOUT_A_TEST = {42}


def rows() -> list[list[str]]:
    """The cells of every row of the tables of faults."""
    faults = PAGE.split("## Faults")[1].split("## Soak test")[0]
    lines = [line for line in faults.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in ("#", "fault")]


NUMBERED = [row for row in rows() if row[0].isdigit()]
TESTED = [row for row in rows() if not (row[0].isdigit() and int(row[0]) in WITHOUT_A_TEST)]


@functools.cache
def functions(file: str) -> dict[str, ast.FunctionDef]:
    """The functions of a file by their names."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def asserts(file: str, name: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a function of a file asserts something, itself or in a function that it calls."""
    source = ast.unparse(functions(file)[name])
    if re.search(r"\bassert |pytest\.(raises|warns)\(|\.assert_\w+\(", source):
        return True
    called = {*re.findall(r"\b(\w+)\(", source)} & functions(file).keys() - seen - {name}
    return any(asserts(file, inner, seen | {name}) for inner in called)


def test_all_44_faults_are_listed():
    assert [int(row[0]) for row in NUMBERED] == [*range(1, 45)]
    assert len(TESTED) > 90


@pytest.mark.parametrize("row", TESTED, ids=[row[-3] if len(row) > 3 else row[0] for row in TESTED])
def test_a_fault_has_what_happens_and_tests_that_assert_it(row):
    """The named tests exist, are run in CI, and can fail."""
    *_, happens, tests = row
    assert happens
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", tests)
    assert named, tests
    for file, name in named:
        node = functions(file)[name]
        marks = [ast.unparse(mark) for mark in node.decorator_list]
        assert not any(m.startswith(("pytest.mark.skip(", "pytest.mark.xfail")) for m in marks)
        assert asserts(file, name)
