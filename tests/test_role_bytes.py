"""Bytes per role: known parameter counts, and agreement with allocated arrays."""

import dataclasses
from pathlib import Path

import jax
import pytest

from benchmarks.language import preset_bytes
from benchmarks.language.role_bytes import (
    examples,
    markdown,
    num_params,
    readable,
    role_bytes,
    table,
)
from ppo_jax.config.rlhf_presets import PRESETS
from ppo_jax.rlhf.decoder import Decoder, small


def test_published_sizes_are_met():
    """GPT-2 has 124,439,808 parameters; LLaMA 7B, 6,738,415,616."""
    sizes = {name: num_params(config) for name, config in examples().items()}
    assert sizes["94 k"] == 94_336
    assert sizes["125 M"] == 124_439_808
    assert sizes["7 B"] == 6_738_415_616
    assert 1.3e9 < sizes["1.3 B"] < 1.33e9


def test_bytes_are_those_of_the_arrays():
    config = dataclasses.replace(small(29, num_layers=1), tied=False, dtype="bfloat16")
    decoder = Decoder(config)
    rows = role_bytes(config, batch=3, length=10)
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    critic = jax.eval_shape(decoder.with_score, params)
    cache = jax.eval_shape(lambda: decoder.init_cache(3, 10))

    def nbytes(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    assert rows["reference"] == nbytes(params)
    assert rows["reward"] == nbytes(critic)
    assert (rows["actor"], rows["critic"]) == (4 * rows["reference"], 4 * rows["reward"])
    assert rows["cache"] == nbytes(cache.layers)
    assert rows["logits"] == 4 * 3 * 10 * 29
    half = role_bytes(config, 3, 10, "bfloat16")
    assert half["actor"] == rows["actor"] // 2 and half["cache"] == rows["cache"]


def test_the_table_has_a_row_per_model():
    text = table({"tiny": role_bytes(small(29), 512, 15)})
    assert text.splitlines()[0] == "| | actor | critic | reference | reward | cache | logits |"
    assert "| tiny | 1.51 MB | 1.5" in text
    assert [readable(n) for n in (999, 1000, 4.2e9, 27e12)] == ["999 B", "1 kB", "4.2 GB", "27 TB"]


def test_the_table_of_the_language_page_is_counted():
    page = Path(__file__).parent.parent / "docs/rlhf.md"
    assert markdown() in page.read_text()
    assert preset_bytes.markdown(preset_bytes.stored()) in page.read_text()


@pytest.mark.slow
def test_the_stored_bytes_of_presets_are_counted_again():
    rows = {row["preset"]: row for row in preset_bytes.stored()}
    for name in PRESETS:
        counted = {k: str(v) for k, v in preset_bytes.row_of(name).items()}
        assert counted == rows[name]
