"""The style of figures: distinguishable colours, axes that fit the values, deterministic files."""

import io
import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ppo_jax.analysis import style

# Linear RGB as readers with normal vision, protanopia, deuteranopia and tritanopia see it
# (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]
    ),
    "deuteranopia": np.array(
        [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]
    ),
    "tritanopia": np.array(
        [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9309, 0.1476], [0.0047, 0.6914, 0.3039]]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    low, high = sorted(float(XYZ[1] @ linear(c)) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    x = XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_colours_can_be_told_apart(vision):
    """Distances in CIELAB; 2.3 is just noticeable. The first four colours are used most."""
    seen = [lab(VISION[vision] @ linear(c)) for c in style.PALETTE]
    for count, least in ((4, 30), (len(seen), 20)):
        pairs = itertools.combinations(seen[:count], 2)
        assert min(np.linalg.norm(a - b) for a, b in pairs) > least


def test_lines_and_words_stand_out_from_the_ground():
    """The contrasts that WCAG 2.1 requires of graphics and of text."""
    for ground in (style.GROUND, "#FFFFFF"):
        assert min(contrast(c, ground) for c in style.PALETTE) >= 3
        assert contrast(style.INK, ground) >= 7


def example():
    figure, (axes,) = style.figure()
    style.line(axes, np.arange(3), np.arange(3), rank=0, name="$a_b$", band=([0] * 3, [3] * 3))
    style.label(axes, title="title $x_1$", x="environment steps", y="return")
    style.legend(figure)
    return figure


def test_files_are_whole_and_the_same_each_time():
    for format in style.FORMATS:
        first, second = io.BytesIO(), io.BytesIO()
        style.save(example(), first, format)
        style.save(example(), second, format)
        content = first.getvalue()
        assert content == second.getvalue(), format
        assert b"Date" not in content and b"dc:date" not in content, format
        check_file(content, format)


def check_file(content: bytes, format: str) -> None:
    """That a file can be read: the root of an SVG, the table of contents of a PDF."""
    if format == "svg":
        assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    elif format == "pdf":
        start, end = content.rstrip().splitlines()[-2:]
        assert content.startswith(b"%PDF-") and end == b"%%EOF"
        assert content[int(start) :].startswith(b"xref")
    else:
        assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")


def test_a_dollar_in_a_name_begins_no_formula():
    figure = example()
    (legend,) = figure.legends
    texts = [figure.axes[0]._left_title, *legend.get_texts()]
    assert [t.get_text() for t in texts] == ["title $x_1$", "$a_b$"]
    assert not any(t.get_parse_math() for t in texts)


def test_settings_of_the_caller_do_not_matter_and_stay():
    import matplotlib

    plain = io.BytesIO()
    style.save(example(), plain, "svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        other = io.BytesIO()
        style.save(example(), other, "svg")
        assert matplotlib.rcParams["font.size"] == 30
    assert plain.getvalue() == other.getvalue()


@pytest.mark.parametrize(
    "values",
    [
        (1e-4, 1e-3, 1e-2),
        (1e-4, 3e-4, 1e-3),
        (32, 64, 128),
        (5e-4, 2e-3, 8e-3),
        (0.01, 0.1),
        tuple(10 ** np.random.default_rng(0).uniform(-4, -2, 16)),
    ],
)
def test_geometric_values_are_log_spaced(values):
    assert style.log_spaced(values) and style.log_spaced(values[::-1])


@pytest.mark.parametrize(
    "values",
    [
        (0.1, 0.2, 0.3),
        (0.9, 0.95, 0.99),
        (1, 2, 3, 4, 5, 6, 7, 8),
        (1, 10, 20, 30, 40),
        (0, 0.1, 1),
        (-1, 1, 10),
        (1, 2),
        (3,),
        (),
        (1, 10, np.inf),
        tuple(np.random.default_rng(0).uniform(0.01, 1, 16)),
    ],
)
def test_other_values_are_not(values):
    assert not style.log_spaced(values)


@pytest.mark.parametrize(
    ("values", "known", "scale"),
    [
        ((1e-4, 1e-3, 1e-2), None, "log"),
        ((0.1, 0.2, 0.3), None, "linear"),
        ((0.1, 0.2, 0.3), "log", "log"),
        ((0, 1e-3, 1e-2, 1e-1), None, "symlog"),
        ((0, 0.1, 0.2), None, "linear"),
    ],
)
def test_an_axis_has_the_scale_and_the_ticks_of_its_values(values, known, scale):
    figure, (axes,) = style.figure()
    axes.plot(values, values, "o")
    style.scale_axis(axes, values, known)
    style.save(figure, io.BytesIO(), "png")
    assert axes.get_xscale() == scale
    assert [t.get_text() for t in axes.get_xticklabels()] == [f"{v:g}" for v in values]


def test_numbers_of_an_axis_are_short():
    values = (0, 500, 2500, 1e6, 1.5e9, -2e3)
    assert [style.short(x) for x in values] == ["0", "500", "2.5k", "1M", "1.5B", "-2k"]


def test_lines_beyond_the_palette_share_one_name():
    figure, (axes,) = style.figure()
    for rank in range(style.NAMED + 2):
        style.line(axes, np.arange(2), np.arange(2), rank=rank, name=f"line {rank}")
    style.legend(figure, others=2)
    (legend,) = figure.legends
    names = [t.get_text() for t in legend.get_texts()]
    assert names == [*(f"line {k}" for k in range(style.NAMED)), "2 others"]
    assert [line.get_color() for line in axes.lines[-2:]] == [style.OTHERS] * 2


def test_long_names_are_continued_on_the_next_line():
    name = "learning_rate=0.0005, gamma=0.99, gae_lambda=0.95, clip_eps=0.2"
    assert style.wrapped(name, 40).split("\n") == [
        "learning_rate=0.0005, gamma=0.99,",
        "gae_lambda=0.95, clip_eps=0.2",
    ]
    assert style.wrapped("short", 40) == "short"


def test_ticks_that_would_overlap_are_left_to_matplotlib():
    figure, (axes,) = style.figure()
    axes.plot((1e-4, 1e-3, 1e-2), (0, 1, 2))
    style.scale_axis(axes, (1e-4, 1e-3, 1e-2), "lin")
    assert axes.get_xscale() == "linear" and len(axes.get_xticks()) > 3
