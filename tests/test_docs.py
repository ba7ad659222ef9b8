"""What the documents say exists, exists."""

import ast
import re
from pathlib import Path

import pytest

import benchmarks.throughput.__main__ as throughput
from benchmarks import (
    algorithms,
    alignment,
    family,
    host_environments,
    pong,
    recall,
    rlhf,
    sweep,
    tuning,
)
from benchmarks.learning import markdown
from benchmarks.table import RESULTS, read
from benchmarks.throughput import documents
from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS

ROOT = Path(__file__).parent.parent


def test_every_test_named_in_the_tables_exists():
    pages = [(ROOT / f"docs/{page}.md").read_text() for page in ("details", "reliability")]
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", "".join(pages))
    assert len(named) > 45
    for file, function in named:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, function


@pytest.mark.slow
def test_the_library_example_of_the_readme_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it keeps a run
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(compile(block, "README.md", "exec"), {})
    printed = re.findall(r"print\(.*\) +# (\(.*?\)|[\d.]+)", block)
    assert capsys.readouterr().out.split("\n")[:-1] == printed and len(printed) == 3


def test_the_table_of_the_pong_page_is_that_of_the_results():
    assert pong.markdown() in (ROOT / "docs/pong.md").read_text()


def test_the_table_of_the_host_page_is_that_of_the_results():
    text = (ROOT / "docs/host_environments.md").read_text()
    assert host_environments.markdown() in text


def test_the_table_of_the_memory_page_is_that_of_the_results():
    assert recall.markdown() in (ROOT / "docs/memory.md").read_text()


def test_the_table_of_the_language_page_is_that_of_the_results():
    text = (ROOT / "docs/rlhf.md").read_text()
    assert alignment.markdown() in text
    assert rlhf.markdown() in text and rlhf.breakdown_markdown() in text


def test_the_example_of_the_language_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/rlhf.md").read_text(), re.S)
    for block in blocks:
        exec(compile(block, "rlhf.md", "exec"), {})
    (printed,) = re.findall(r"print\(.*\)  # (.*)", blocks[-1])
    assert capsys.readouterr().out == printed + "\n"


@pytest.mark.slow
def test_the_example_of_the_sweeps_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.S)
    block, search = blocks
    assert "optuna" in search  # tests/test_search.py
    exec(compile(block, "sweeps.md", "exec"), {})
    (printed,) = re.findall(r"print\(.*\) +# (.*)", block)
    assert capsys.readouterr().out == printed + "\n"


def test_the_example_of_the_spaces_page_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/spaces.md").read_text(), re.S)
    exec(compile(block, "spaces.md", "exec"), {})
    printed = re.findall(r"print\(.*\) +# ([\d.]+):", block)
    assert capsys.readouterr().out.split() == printed and len(printed) == 2


def test_the_tables_of_the_sweeps_page_are_those_of_the_results():
    text = (ROOT / "docs/sweeps.md").read_text()
    assert sweep.width_markdown() in text
    assert sweep.agents_markdown() in text
    assert tuning.markdown() in text


def test_the_presets_have_the_values_that_their_search_kept():
    rows = read(RESULTS / "tuning.csv")
    assert {r["preset"] for r in rows} == {*tuning.SEARCHES}
    for r in rows:
        config = configs.to_flat(configs.make(preset=r["preset"]))
        kept = {**tuning.SEARCHES[r["preset"]].before}
        if r["adopted"] == "True":
            kept = {n: float(v) for n, v in (w.split("=") for w in r["best"].split())}
        assert {n: config[n] for n in kept} == pytest.approx(kept, rel=0.01), r["preset"]
        assert (RESULTS / "tuning" / f"{r['preset']}.html").exists()


def test_the_table_of_the_readme_is_that_of_the_results():
    assert markdown(read(RESULTS / "learning.csv")) in (ROOT / "README.md").read_text()


def test_the_tables_of_the_family_are_those_of_the_results():
    text = (ROOT / "docs/algorithms.md").read_text()
    assert family.markdown() in text
    assert algorithms.markdown() in text
    rows = {(r["env"], r["method"]) for r in read(RESULTS / "family.csv")}
    assert rows == {(env, method) for env in family.ENVS for method in family.METHODS}


def test_the_tables_of_the_speed_are_those_of_the_results():
    tables = throughput.printed(RESULTS)
    assert {"summary", "race", "compile", "breakdown", "restart", "quality"} <= {*tables}
    for document, names in documents.PLACES.items():
        text = (ROOT / document).read_text()
        assert documents.filled(text, tables, names) == text, "--documents writes them anew"
        assert all(tables[name].strip() in text for name in names if name in tables)
    with pytest.raises(SystemExit, match="throughput: race"):
        documents.filled("", tables, ("race",))


def test_every_algorithm_is_in_the_documents():
    readme = (ROOT / "README.md").read_text()
    table = (ROOT / "docs/algorithms.md").read_text()
    for name in ALGORITHMS:
        assert f"`{name}`" in readme and f"| `{name}` |" in table, name


def test_all_37_details_are_listed():
    rows = re.findall(r"^\| (\d+)(?:-(\d+))? \|", (ROOT / "docs/details.md").read_text(), re.M)
    listed = [n for a, b in rows for n in range(int(a), int(b or a) + 1)]
    assert listed == list(range(1, 38))
