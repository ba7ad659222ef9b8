"""The table of a sweep for readers: as HTML, and as Markdown and LaTeX for pasting.

table.csv has a column per number for programs; here a column is what a paper shows: interval ends
are in one column, and names are words.
"""

import html
from collections.abc import Sequence
from typing import Any

from ppo_jax.config.options import show

Row = dict[str, Any]
# Columns of table.csv -> heading.
HEADINGS = {
    "env": "environment",
    "iqm": "IQM",
    "min": "minimum",
    "area": "mean in training",
    "steps_to_threshold": "steps to threshold",
    "share_reached": "seeds reaching it",
}
INTERVAL = ("ci95_low", "ci95_high")
# Column that identifies a configuration inside the folder of the sweep, and nowhere else.
NUMBER = "configuration"
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def readable(rows: Sequence[Row], *, numbers: bool = False) -> list[Row]:
    """Rows of table.csv with headings in words and values as text.

    Columns without any value are left out.

    Args:
        rows: rows of numbers, None where there is no value.
        numbers: whether the number of the configuration stays, as the last column.
    """
    names = [n for n in dict.fromkeys(n for r in rows for n in r) if n not in (NUMBER, *INTERVAL)]
    names = [n for n in names if any(r.get(n) is not None for r in rows)]
    found: list[Row] = []
    for row in rows:
        new: Row = {}
        for name in names:
            value = row.get(name)
            share = name == "share_reached" and value is not None
            new[HEADINGS.get(name, name)] = f"{value:.0%}" if share else _text(value)
            if name == "iqm" and any(r.get(INTERVAL[0]) is not None for r in rows):
                new["95 % interval"] = _interval(row)
        if numbers and NUMBER in row:
            new[NUMBER] = str(row[NUMBER])
        found.append(new)
    return found


def _interval(row: Row) -> str:
    low, high = (row.get(name) for name in INTERVAL)
    return "" if low is None or high is None else f"[{_text(low)}, {_text(high)}]"


def as_html(rows: Sequence[Row], *, best: bool = False) -> str:
    """A table in HTML.

    Args:
        rows: rows of numbers, as in table.csv.
        best: whether the first row is the best one and is printed in bold.
    """
    found = readable(rows, numbers=True)
    header = "".join(f"<th>{html.escape(name)}</th>" for name in found[0])
    lines = ["".join(f"<td>{html.escape(text)}</td>" for text in row.values()) for row in found]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    kind = ' class="best"' if best else ""
    return (
        f'<div class="table"><table{kind}><thead><tr>{header}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def markdown(rows: Sequence[Row]) -> str:
    """The same table in Markdown; numbers are aligned to the right."""
    found = readable(rows)
    sides = ["---:" if _numeric(found, name) else "---" for name in found[0]]
    lines = [[*found[0]], sides, *([*row.values()] for row in found)]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def latex(rows: Sequence[Row]) -> str:
    """The same table in LaTeX, for the package booktabs."""
    found = readable(rows)
    sides = "".join("r" if _numeric(found, name) else "l" for name in found[0])
    head = _line([*found[0]])
    body = "".join(_line([*row.values()]) for row in found)
    return (
        "% \\usepackage{booktabs}\n"
        f"\\begin{{tabular}}{{{sides}}}\n\\toprule\n{head}\\midrule\n{body}\\bottomrule\n"
        "\\end{tabular}\n"
    )


def _line(cells: Sequence[str]) -> str:
    escaped = ["".join(LATEX.get(c, c) for c in cell) for cell in cells]
    # A line that begins with "[" would be read as the argument of the line break before it.
    if escaped[0].startswith("["):
        escaped[0] = "{}" + escaped[0]
    return " & ".join(escaped) + " \\\\\n"


def _numeric(rows: Sequence[Row], name: str) -> bool:
    """Whether a column has numbers, intervals or percentages only."""
    return all(c in "0123456789.,-+e[]% infa" for row in rows for c in row[name])


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return show(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
