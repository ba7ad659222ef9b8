"""Checks of the documentation: what its pages name exists, and its examples run."""

import ast
import hashlib
import re
from pathlib import Path

import jax
import pytest

import benchmarks.throughput.__main__ as throughput
import ppo_jax
from benchmarks import (
    ablation,
    algorithms,
    alignment,
    control,
    family,
    host_environments,
    memory_cells,
    pong,
    reasoning,
    recall,
    rlhf,
    suite_returns,
    sweep,
    tuning,
)
from benchmarks.language import families
from benchmarks.learning import markdown, rows_of_all
from benchmarks.table import RESULTS, read
from benchmarks.throughput import documents
from documents import run_python
from ppo_jax import config as configs
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.rlhf import rollout as language_rollout

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


def test_the_table_of_the_variants_is_that_of_the_results():
    rows = read(RESULTS / "ablation.csv")
    text = (ROOT / "docs/variants.md").read_text()
    assert ablation.markdown(rows) in text
    over_all = {r["variant"]: r for r in rows if r["task"] == "all tasks"}
    assert all(float(r["probability_low"]) <= 0.5 for r in over_all.values())
    worse = {v for v, r in over_all.items() if float(r["probability_high"]) < 0.5}
    assert worse == {"adam_reset", "ppo_ewma", "spo"}
    compared = sum(r["variant"] != "default" for r in rows if r["task"] != "all tasks")
    assert f"With {compared} comparisons" in text


def test_the_table_of_suite_returns_is_that_of_the_results():
    table = suite_returns.markdown(read(RESULTS / "suite_returns.csv"))
    assert table in (ROOT / "docs/environments.md").read_text()


def test_the_table_of_dm_control_is_that_of_the_results():
    text = (ROOT / "docs/algorithms/reppo.md").read_text()
    assert control.markdown(read(control.FILE)) in text


def test_the_tables_of_the_atari_page_are_those_of_the_results():
    text = (ROOT / "docs/atari.md").read_text()
    games = {r["env"] for r in read(RESULTS / "pong.csv")} - {"Pong"}
    assert games and all(pong.markdown(game) in text for game in games)


def test_the_text_on_connect_four_is_that_of_the_results():
    rows = read(RESULTS / "league.csv")
    last, text = rows[-1], " ".join((ROOT / "docs/environments.md").read_text().split())
    percent = lambda name: f"{float(last[name]):.0%}".replace("%", " %")
    first, luck = percent("wins_against_first"), percent("wins_against_random")
    assert f"for the random player to {int(last['elo']):,}." in text and len(rows) == 21
    assert f"wins {first} of its games against the first and {luck} against" in text
    one, two, four = (percent(f"wins_against_minimax_{depth}") for depth in (1, 2, 4))
    assert f"{one}, {two} and {four}." in text
    assert float(last["wins_against_first"]) > 0.95


def test_the_text_on_convolutions_is_that_of_the_results():
    rows = [r for r in read(RESULTS / "pong.csv") if r["network"] == "small" and r["env"] == "Pong"]
    easy = [r for r in rows if "difficulty=easy" in r["env_args"]]
    means = "{}, {} and {} points".format(*(r["mean"] for r in easy))
    text = " ".join((ROOT / "docs/pong.md").read_text().split())
    assert means in text and min(float(r["mean"]) for r in easy) >= 15 and len(easy) == 3
    short, long = (r["mean"] for r in rows if "difficulty=hard" in r["env_args"])
    claim = f"wins by {short} points after four million steps, and by {long} after it was continued"
    assert claim in text and float(long) >= 10


def test_the_table_of_the_host_page_is_that_of_the_results():
    text = (ROOT / "docs/host_environments.md").read_text()
    assert host_environments.markdown() in text


def test_the_table_of_the_memory_page_is_that_of_the_results():
    text = (ROOT / "docs/memory.md").read_text()
    assert recall.markdown() in text and memory_cells.markdown() in text


def test_the_table_of_the_reasoning_page_is_that_of_the_results():
    assert reasoning.markdown() in (ROOT / "docs/reasoning.md").read_text()


def test_the_table_of_the_language_page_is_that_of_the_results():
    text = (ROOT / "docs/rlhf.md").read_text()
    assert alignment.markdown() in text
    assert rlhf.markdown() in text and rlhf.breakdown_markdown() in text
    assert families.markdown() in text


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


@pytest.mark.slow
def test_the_example_of_the_spaces_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/spaces.md").read_text(), re.S)
    space = {}
    for block in blocks:
        exec(compile(block, "spaces.md", "exec"), space)
    printed = re.findall(r"print\(.*\) +# ([\d.]+):", "".join(blocks))
    assert capsys.readouterr().out.split() == printed and len(printed) == 3


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
        assert (RESULTS / "tuning" / f"{r['preset']}.csv").exists()


def test_the_table_of_the_readme_is_that_of_the_results():
    assert markdown(rows_of_all()) in (ROOT / "README.md").read_text()


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


# The examples that train and compile; the others are run by every test.
TRAINED = ("run", "evaluate", "load", "make_train", "build")


def public_examples() -> dict[str, str]:
    """Name -> the section of docs/public_names.md about it."""
    page = (ROOT / "docs/public_names.md").read_text()
    sections = re.split(r"^### `(\w+)`$", page, flags=re.M)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


def run_example(section, capsys):
    """Run the block of a section and compare what it prints with its comments."""
    (block,) = re.findall(r"```python\n(.*?)```", section, re.S)
    expected = re.findall(r"print\(.*\)  # (.*?)(?: {2}#.*)?$", block, re.M)
    exec(compile(block, "public_names.md", "exec"), {})
    assert expected and capsys.readouterr().out.split() == " ".join(expected).split()


def test_every_public_name_has_an_example():
    assert {*public_examples()} == {*ppo_jax.__all__, "build", "make_train"}


@pytest.mark.parametrize("name", [n for n in public_examples() if n not in TRAINED])
def test_the_example_of_a_public_name_prints_what_is_written(name, capsys):
    run_example(public_examples()[name], capsys)


@pytest.mark.slow
def test_the_examples_that_train_print_what_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in TRAINED:  # `evaluate` and `load` use the run of `run`
        run_example(public_examples()[name], capsys)


def test_every_metric_that_is_logged_is_explained():
    page = (ROOT / "docs/understanding_a_run.md").read_text()
    names = {*language_rollout.METRICS}
    for algorithm in ALGORITHMS:
        config = configs.make(preset="none", algorithm=algorithm, num_steps=512)
        program = ppo_jax.build(config)
        state = jax.eval_shape(program.init, jax.random.key(0))
        names |= {*jax.eval_shape(program.step, state)[1], *configs.promises(config)}
    assert {"approx_kl", "unfinished_episodes", "actor_grad_norm", "log_prob_gap"} <= names
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_page_of_an_algorithm_is_complete(name):
    page = (ROOT / f"docs/algorithms/{name}.md").read_text()
    parts = ("What it is.", "When to use it.", "Paper", "## Pseudocode", "## Learning curves")
    parts += (f"{{hyperparameters}} {name}",)
    if name in family.METHODS:
        parts += (f"{{learned}} {name}", f"images/curves/{name}.svg")
        assert (ROOT / f"docs/images/curves/{name}.svg").is_file()
    assert [part for part in parts if part not in page] == []


def test_formulas_need_no_network():
    """The copy of MathJax is the one that its note describes."""
    folder = ROOT / "docs/_static/mathjax"
    digest = hashlib.sha256((folder / "tex-svg.js").read_bytes()).hexdigest()
    assert digest in (folder / "SOURCE.txt").read_text() and (folder / "LICENSE").is_file()
    assert 'mathjax_path = "mathjax/tex-svg.js"' in (ROOT / "docs/conf.py").read_text()


def test_the_example_of_the_statistics_page_prints_what_is_written(capsys):
    assert [run_python(ROOT / "docs/statistics.md")] == [capsys.readouterr().out.split()]


@pytest.mark.slow
def test_the_ten_lines_of_the_front_page_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run_python(ROOT / "docs/index.md")
    assert capsys.readouterr().out.split("\n")[:-1] == printed == ["(4, 195)"]
