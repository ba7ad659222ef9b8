"""The best configurations of a sweep as a table on a terminal."""

import sys

from rich.box import SIMPLE
from rich.table import Table

from ppo_jax.runs import terminal
from ppo_jax.sweep import results
from ppo_jax.sweep.results import Setting

# Narrower terminals have no room for all columns.
WIDE = 100


def print_table(order: list[Setting], threshold: float | None, rows: int = 10) -> None:
    """Print the best configurations.

    Args:
        order: the configurations, best first.
        threshold: return that counts as solved; None: the threshold of each environment.
        rows: the largest number of configurations that are printed.
    """
    terminal.say(table_of(order[:rows], threshold, terminal.width(sys.stdout)))
    if len(order) > rows:
        terminal.say(f"the best {rows} of {len(order)} configurations; the report has all of them")


def table_of(order: list[Setting], threshold: float | None, width: int) -> Table:
    """The table of `print_table`; names are folded and never cut, so that all rows differ.

    Args:
        order: the configurations, best first.
        threshold: argument of `print_table`.
        width: number of characters of a line of the terminal.
    """
    several, wide = len(order[0].results) > 1, width >= WIDE
    table = Table(box=SIMPLE)
    table.add_column("configuration", overflow="fold", min_width=14)
    if several:
        table.add_column("env", overflow="fold", min_width=11)
    for name in (
        *(("mean",) if wide else ()),
        "IQM [95 %]",
        *(("AUC",) if wide else ()),
        "steps to\nthreshold",
        "reached",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for setting in order:
        for r in setting.results:
            line = results.row(r, threshold)
            steps, share = line["steps_to_threshold"], line["share_reached"]
            low, high = line["ci95_low"], line["ci95_high"]
            table.add_row(
                *((setting.name, r.env) if several else (setting.name,)),
                *((f"{line['mean']}",) if wide else ()),
                f"{line['iqm']}" + (f" [{low}, {high}]" if low is not None else ""),
                *((f"{line['area']}",) if wide else ()),
                f"{steps:,}" if steps else "-",
                f"{share:.0%}" if share is not None else "-",
            )
    return table
