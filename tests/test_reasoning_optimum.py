"""`benchmarks.reasoning_optimum`: rows, table, figure, refusals and the committed results."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import reasoning_optimum as benchmark
from ppo_jax.types import LearnerState, TrainState

SMALLEST = (
    "--task subtraction --difficulty digits=1 --hidden-size 8 --num-layers 1 --num-heads 2 "
    "--worked-examples 8 --sft-updates 20 --sft-batch-size 4 --num-prompts 4 --group-size 2 "
    "--learning-rate 1e-2"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("grop",)}, "--methods: unknown 'grop'"),
        ({"seeds": 1}, "--seeds is 1; an interval needs at least 2"),
        ({"every": 7}, "--updates is 300; it must be a multiple of --every, 7"),
    ],
)
def test_invalid_options_are_refused(change, message):
    with pytest.raises(SystemExit) as error:
        benchmark.check(dataclasses.replace(benchmark.Options(), **change))
    assert str(error.value).startswith(message)


def state_of(values):
    learner = LearnerState({"actor": {"x": jnp.asarray(values)}}, (), jnp.int32(0), ())
    return TrainState(learner, (), (), jnp.int32(0))


def test_a_row_has_the_numbers_of_its_seed():
    def compare(seed, params):
        names = ("exact_pass_at_1", "exact_kl", "best_pass_at_1")
        return {name: float(params["x"]) + seed + i for i, name in enumerate(names)}

    rows = benchmark.rows_of("grpo", 20, state_of([0.25, 0.5]), compare)
    assert rows[1] == {
        "method": "grpo", "seed": 1, "update": 20,
        "pass_at_1": "1.5", "kl": "2.5", "best_pass_at_1": "3.5",
    }  # fmt: skip
    with pytest.raises(SystemExit, match="more than 3,000 responses"):
        benchmark.rows_of("grpo", 20, state_of([0.0]), lambda seed, params: {})


def test_the_table_has_ratios_of_the_last_evaluation_and_a_figure_is_drawn(tmp_path):
    numbers = {0: [(0.2, 0.0, 0.2), (0.4, 0.0, 0.4)], 10: [(0.4, 0.5, 0.8), (0.9, 1.5, 1.0)]}
    rows = [
        {"method": method, "seed": seed, "update": update}
        | dict(zip(benchmark.NUMBERS, each, strict=True))
        for method in ("grpo", "ppo")
        for update, of_seeds in numbers.items()
        for seed, each in enumerate(of_seeds)
    ]
    path = tmp_path / benchmark.TABLE
    benchmark.replace(path, rows, ("method", "seed", "update"), benchmark.place)
    lines = benchmark.markdown(tmp_path).splitlines()
    assert lines[2] == ("| ppo | 2 | 10 | 0.300 | 0.650 | 1.000 | 0.900 | 0.700 | 0.500 to 0.900 |")
    assert len(lines) == 4
    benchmark.plot(benchmark.read(path), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.slow
def test_all_methods_begin_with_the_fine_tuned_models_and_are_below_the_best(tmp_path):
    options = benchmark.Options(
        methods=("grpo", "ppo"), seeds=2, updates=2, every=1,
        flags=SMALLEST, out=tmp_path, image=tmp_path,
    )  # fmt: skip
    benchmark.main(options)
    rows = benchmark.read(tmp_path / benchmark.TABLE)
    assert len(rows) == 2 * 2 * 3
    first = [row for row in rows if row["update"] == "0"]
    assert {float(row["kl"]) for row in first} == {0.0}
    by_method = [[row["pass_at_1"] for row in first if row["method"] == m] for m in ("grpo", "ppo")]
    assert by_method[0] == by_method[1]
    for row in rows:
        assert float(row["pass_at_1"]) <= float(row["best_pass_at_1"]) + 1e-4


def test_committed_numbers_are_below_the_best_and_are_those_of_the_page():
    rows = benchmark.read(benchmark.RESULTS / benchmark.TABLE)
    for row in rows:
        assert float(row["pass_at_1"]) <= float(row["best_pass_at_1"]) + 1e-4
    for method in {row["method"] for row in rows}:
        updates, found = benchmark.arrays(rows, method)
        assert updates[0] == 0 and np.abs(found["kl"][0]).max() == 0.0
    page = benchmark.RESULTS.parents[1] / "docs/reasoning_tasks.md"
    assert benchmark.markdown() in page.read_text()
