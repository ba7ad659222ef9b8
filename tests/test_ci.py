"""The scripts in .ci name every test file that they have to run."""

import ast
import re

import documents

TESTS = documents.ROOT / "tests"


def marked(path, marker):
    """Whether a test file uses a marker, for one of its tests, one of their cases or all of it."""
    found = ast.walk(ast.parse(path.read_text()))
    names = {ast.unparse(node) for node in found if isinstance(node, ast.Attribute)}
    return f"pytest.mark.{marker}" in names


def test_peers_runs_all_files_with_its_marker():
    script = (documents.ROOT / ".ci/peers").read_text()
    named = re.findall(r"tests/(test_\w+\.py)", script)
    assert len(named) == len({*named})
    assert {*named} == {p.name for p in TESTS.glob("test_*.py") if marked(p, "peers")}


def test_a_marker_is_found_wherever_it_stands(tmp_path):
    path = tmp_path / "test_x.py"
    for line in (
        "pytestmark = pytest.mark.peers",
        "@pytest.mark.peers\ndef test_x(): pass",
        "CASES = [pytest.param(1, marks=[pytest.mark.peers])]",
        "CASES = [pytest.param(1, marks=pytest.mark.peers(reason='x'))]",
    ):
        path.write_text(line)
        assert marked(path, "peers") and not marked(path, "slow"), line
    path.write_text('"""pytest.mark.peers"""\npeers = 1\n')
    assert not marked(path, "peers")
