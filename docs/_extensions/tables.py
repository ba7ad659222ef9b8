"""Generated tables: hyperparameters from the dataclasses, results from CSV files."""

import csv
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

from benchmarks.accelerator import report
from ppo_jax.algorithms import ALGORITHMS
from ppo_jax.config import TrainConfig
from ppo_jax.config.presets import PRESETS


class Hyperparameters(SphinxDirective):
    """`{hyperparameters} ppo`: name, default, range and meaning of each option of a Config.

    `{hyperparameters} run` lists the options of TrainConfig, which all algorithms share.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        name = self.arguments[0]
        config = TrainConfig if name == "run" else ALGORITHMS[name].Config
        rows = [
            [f"--{f.name.replace('_', '-')}", value(f.default), allowed(f), doc(f)]
            for f in dataclasses.fields(config)
            if "bounds" in f.metadata
        ]
        found = table(["flag", "default", "allowed values", "meaning"], rows, code=(0,))
        found["classes"] += ["options"]
        return [found]


class Presets(SphinxDirective):
    """`{presets} ppo`: the presets of an algorithm with their values."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        rows = []
        for name, preset in PRESETS.items():
            if preset["algorithm"] == self.arguments[0]:
                others = {k: v for k, v in preset.items() if k not in ("env", "algorithm")}
                rows.append(
                    [name, preset["env"], " ".join(f"{k}={value(v)}" for k, v in others.items())]
                )
        return [table(["preset", "environment", "values"], rows, code=(0, 2))]


class Results(SphinxDirective):
    """`{results} family.csv`: rows of a committed CSV.

    :where: COLUMN=VALUE or COLUMN^=START, to show only these rows.
    :columns: names of the columns to show; all columns if absent.
    :titles: titles of the columns, separated by |; the names if absent.
    """

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "where": directives.unchanged,
        "columns": directives.unchanged,
        "titles": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """The table."""
        root = Path(self.env.srcdir).parent
        path = root / "benchmarks/results" / self.arguments[0]
        self.env.note_dependency(str(path))
        with path.open() as file:
            rows = list(csv.DictReader(file))
        where = self.options.get("where")
        if where and "^=" in where:
            column, start = where.split("^=")
            rows = [r for r in rows if r[column].startswith(start)]
        elif where:
            column, wanted = where.split("=")
            rows = [r for r in rows if r[column] == wanted]
        if not rows:
            raise self.error(f"no row of {path.name} has {where}")
        columns = self.options["columns"].split() if "columns" in self.options else [*rows[0]]
        titles = [t.strip() for t in self.options.get("titles", "").split("|") if t.strip()]
        return [table(titles or columns, [[r[c] for c in columns] for r in rows])]


class Learned(SphinxDirective):
    """`{learned} ppo`: the results of an algorithm in family.csv, in readable columns."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        name = self.arguments[0]
        path = Path(self.env.srcdir).parent / "benchmarks/results/family.csv"
        self.env.note_dependency(str(path))
        with path.open() as file:
            rows = [r for r in csv.DictReader(file) if r["method"].split(" + ")[0] == name]
        if not rows:
            raise self.error(f"{path.name} has no row of {name}")
        variants = len({r["method"] for r in rows}) > 1
        head = ["environment", *(["method"] if variants else []), "steps", "seeds"]
        head += ["IQM [95 % interval]", "mean", "worst seed", "seeds at the threshold"]
        return [table(head, [self.cells(r, variants) for r in rows])]

    @staticmethod
    def cells(r: dict[str, str], variants: bool) -> list[str]:
        """One row of the table."""
        return [
            r["env"],
            *([r["method"]] if variants else []),
            f"{int(r['env_steps']):,}",
            r["seeds"],
            f"{r['iqm']} [{r['ci95_low']}, {r['ci95_high']}]",
            r["mean"],
            r["min"],
            f"{float(r['fraction_at_threshold']):.0%} at {r['threshold']}",
        ]


class Accelerator(SphinxDirective):
    """`{accelerator}`: tables and figure of benchmarks.accelerator, or a note without rows."""

    def run(self) -> list[nodes.Node]:
        """A table for each device, followed by the figure."""
        for path in (report.RESULTS / report.FILE, report.PUBLISHED):
            self.env.note_dependency(str(path))
        rows = report.measured(report.RESULTS)
        if not rows:
            return [nodes.paragraph("", report.NOTHING)]
        found: list[nodes.Node] = []
        for title, head, lines in report.tables(rows):
            found += [nodes.paragraph("", f"{title}:"), table(head, lines)]
        if (report.RESULTS / "accelerator.png").is_file():
            alt = "Environment steps per second of each task, and what others publish"
            found.append(nodes.image(uri="../benchmarks/results/accelerator.png", alt=alt))
        return found


def value(x: Any) -> str:
    """A value in the form in which the command line takes it."""
    if isinstance(x, tuple):
        return " ".join(map(str, x)) or "none"
    return str(x)


def allowed(field: dataclasses.Field[Any]) -> str:
    """The values that an option may have, as text."""
    return "True, False" if isinstance(field.default, bool) else str(field.metadata["bounds"])


def doc(field: dataclasses.Field[Any]) -> str:
    """The help text of an option."""
    return field.metadata["doc"]


def table(head: list[str], rows: list[list[str]], code: tuple[int, ...] = ()) -> nodes.table:
    """A docutils table; the columns with the numbers in `code` are formatted as code."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", row([[nodes.Text(h)] for h in head]))
    body = nodes.tbody()
    for cells in rows:
        body += row([words(c) if i in code else [nodes.Text(c)] for i, c in enumerate(cells)])
    group += body
    return nodes.table("", group)


def words(text: str) -> list[nodes.Node]:
    """Code in a cell, a node per word, so that a line may break between two of them."""
    found = [
        node for word in text.split(" ") for node in (nodes.literal(text=word), nodes.Text(" "))
    ]
    return found[:-1]


def row(cells: list[list[nodes.Node]]) -> nodes.row:
    """A row of cells with one paragraph each."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("hyperparameters", Hyperparameters)
    app.add_directive("presets", Presets)
    app.add_directive("results", Results)
    app.add_directive("learned", Learned)
    app.add_directive("accelerator", Accelerator)
    return {"parallel_read_safe": True}
