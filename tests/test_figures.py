"""The figures of the benchmarks are drawn from the committed tables."""

import pytest

from benchmarks import figures


@pytest.mark.parametrize("draw", [figures.draw_family, figures.draw_learning, figures.draw_scaling])
def test_a_figure_is_drawn_from_its_table(tmp_path, draw):
    draw(tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 10_000
