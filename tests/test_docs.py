"""What the documents say exists, exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_named_in_the_details_table_exists():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs/details.md").read_text())
    assert len(named) > 30
    for file, function in named:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, function


def test_all_37_details_are_listed():
    rows = re.findall(r"^\| (\d+)(?:-(\d+))? \|", (ROOT / "docs/details.md").read_text(), re.M)
    listed = [n for a, b in rows for n in range(int(a), int(b or a) + 1)]
    assert listed == list(range(1, 38))
