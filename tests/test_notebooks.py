"""The structure of the notebooks; nbmake executes them, with their assertions."""

import json

import pytest

import documents

NOTEBOOKS = sorted((documents.ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook, kind):
    """The sources of the cells of a kind."""
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


def test_the_notebooks_have_an_order():
    names = [path.name for path in NOTEBOOKS]
    assert names[-1] == "quickstart.ipynb"  # comes first, and has the name that pages link to
    assert [name[:2] for name in names[:-1]] == [f"{n:02}" for n in range(1, len(names))]
    for number, path in enumerate(NOTEBOOKS[:-1], 1):
        assert cells(path, "markdown")[0].startswith(f"# {number} · ")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_leads_its_reader(notebook):
    text = cells(notebook, "markdown")
    assert "**Before this notebook:**" in text[0] and "**After it:**" in text[0]
    assert sum("**You should see**" in cell for cell in text) >= 3
    exercises = next(cell for cell in text if "## Exercises" in cell)
    assert "<details><summary>Answers</summary>" in exercises and "</details>" in exercises


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_without_errors(notebook):
    """In order, in one session; warnings of one machine are not kept."""
    code = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == [*range(1, len(code) + 1)]
    for output in (o for c in code for o in c["outputs"]):
        assert output["output_type"] != "error" and output.get("name") != "stderr"
    assert any("assert " in source for source in cells(notebook, "code"))
