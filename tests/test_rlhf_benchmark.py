"""The benchmark of language models: messages between processes, result rows, and refusals."""

import dataclasses
from argparse import Namespace

import jax
import numpy as np
import pytest

from benchmarks import rlhf
from benchmarks.language import breakdown, ours
from benchmarks.language.sizes import SIZES, Size
from benchmarks.throughput.race import Contestant


def test_a_size_survives_the_way_to_the_worker():
    for size in SIZES.values():
        assert Size.from_json(size.to_json()) == size


def test_supervised_steps_have_the_texts_of_a_minibatch():
    """All tokens of the texts are counted, and pairs have two texts."""
    sft, pairs = SIZES["small-sft"], SIZES["small-reward"]
    assert (sft.episodes, sft.tokens_per_episode) == (256, 16)
    assert (pairs.episodes, pairs.tokens_per_episode) == (128, 32)
    assert sft.tokens_per_update == pairs.tokens_per_update == 4096
    assert SIZES["small"].tokens_per_update == 512 * 14


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small-sft", "small-reward"])
def test_supervised_steps_are_measured(name):
    small = {"vocab_size": 16, "hidden_size": 16, "num_layers": 1, "episodes": 4}
    program = ours.prepare(dataclasses.replace(SIZES[name], **small), Namespace())
    program.compile()
    before = jax.device_get(program.state.learner.params["embedding"])
    assert program.run(3) == 3 and int(program.state.update) == 3
    assert np.abs(program.state.learner.params["embedding"] - before).max() > 0


def contestant(name, why="", seconds=(1.0, 2.0)):
    """A finished contestant, without a process."""
    it = Contestant.__new__(Contestant)
    it.name, it.why, it.configuration = name, why, SIZES["small"]
    it.ready = {"compile_seconds": 3.0, "first_update_seconds": 4.0, "versions": {"a": "1"}}
    it.rounds = [
        {"updates": 2, "env_steps": 1024, "seconds": s, "cpu_seconds": 2 * s, "peak_bytes": 2**20}
        for s in seconds
    ]
    return it


def test_rows_hold_medians_and_paired_ratios(tmp_path):
    field = [contestant("ours"), contestant("trl", seconds=(4.0, 16.0))]
    ours, trl = rows = rlhf.rows_of(field)
    assert (ours["episodes_per_second"], ours["cpu_seconds_per_update"]) == (768.0, 1.5)
    assert ours["tokens_per_second"] == 768 * 14
    assert (ours["speedup"], trl["speedup"], trl["cpu_speedup"]) == (1.0, 6.0, 6.0)  # ratios 4, 8
    rlhf.replace(tmp_path / "rlhf.csv", rows, rlhf.KEY, rlhf.place)
    table = rlhf.markdown(tmp_path)
    assert "| small | ppo_jax | 768.0 | 10752.0 | 1.5 |  |  | 3.0 | 1 |" in table
    assert "| small | TRL | 160.0 | 2240.0 | 10.0 | 6.00x | 6.00x |  | 1 |" in table


def test_one_that_failed_says_why(tmp_path):
    rows = rlhf.rows_of([contestant("ours"), contestant("trl", why="died without a word")])
    rlhf.replace(tmp_path / "rlhf.csv", rows, rlhf.KEY, rlhf.place)
    assert "| small | TRL | died without a word |" in rlhf.markdown(tmp_path)


@pytest.mark.parametrize("wrong", [{"sizes": ("smal",)}, {"contestants": ("trll",)}])
def test_unknown_names_are_refused_with_the_nearest(wrong):
    with pytest.raises(SystemExit, match="did you mean"):
        rlhf.check(rlhf.Options(**wrong))


@pytest.mark.slow
def test_the_parts_of_an_update_can_be_traced():
    small = {"vocab_size": 16, "hidden_size": 16, "num_layers": 1, "response_length": 4}
    update = breakdown.Update(dataclasses.replace(SIZES["small"], **small))
    for part in update.parts():
        result = jax.eval_shape(part.body, part.carry, update.constants)
        assert jax.tree.structure(result) == jax.tree.structure(part.carry), part.name
