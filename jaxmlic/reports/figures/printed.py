"""Bars of a table as a paper prints it: Figs. 5 and 6 of MSCNN-LCE-MIC, which draw Tables I, II and V."""

import numpy as np

from jaxmlic import papers
from jaxmlic.errors import UserError, unknown
from jaxmlic.reports.figures import canvas
from jaxmlic.reports.tables import shorten


def find(name: str) -> list[papers.Table]:
    """The parts of a printed table by "PAPER/NUMBER", such as "PAPER/3"; UserError for an unknown one."""
    paper, slash, number = name.partition("/")
    if not slash:
        raise UserError(f"--table={name}: PAPER/NUMBER; jaxmlic reproduce --list shows them")
    tables = papers.load(paper).tables
    found = [table for table in tables if table.number == number]
    if not found:
        raise unknown(f"table of {paper}", number, dict.fromkeys(table.number for table in tables))
    return found


def draw(tables: list[papers.Table], title: str = ""):
    """A panel for each part: groups of bars for the rows, a bar for each of the table's columns."""
    most = max(len(table.rows) for table in tables)
    figure = canvas.new(max(5.5, 1.0 + 0.8 * most), 2.9 * len(tables))
    for axes, table in zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True):
        columns = dict.fromkeys(column.name for row in table.rows for column in row.columns)
        width = 0.85 / len(columns)
        drawn = []
        for place, column in enumerate(columns):
            values = [row.numbers.get(column, np.nan) for row in table.rows]
            colour = f"C{place % 10}"
            at = np.arange(len(values)) + (place - (len(columns) - 1) / 2) * width
            axes.bar(at, values, width, label=column, color=colour, zorder=2)
            drawn += values
        low = 10 * np.floor(np.nanmin(drawn) / 10) - 5
        axes.set_ylim(max(0, low), min(100, np.nanmax(drawn) + 3))
        names = [shorten(row.label, 18) for row in table.rows]
        axes.set_xticks(np.arange(len(names)), names, fontsize=8, rotation=20, ha="right", parse_math=False)
        axes.set_ylabel("percent, cut below", fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        protocols = ", ".join(dict.fromkeys(row.protocol for row in table.rows))
        axes.set_title(f"{table.dataset} {table.split}, {protocols}: {table.title}", fontsize=8.5, parse_math=False)
        axes.grid(axis="y", color="0.9", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, ncols=len(columns) if len(columns) < 8 else 8, loc="upper left")
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure
