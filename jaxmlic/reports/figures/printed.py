"""Bars of a table as a paper prints it, and ours: Figs. 5 and 6 of MSCNN-LCE-MIC, which draw Tables I, II and V."""

from collections.abc import Callable

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


def draw(
    tables: list[papers.Table],
    title: str = "",
    ours: Callable[[papers.Table, papers.Row, str], float] | None = None,
):
    """A panel for each part: groups of bars for the rows, a bar for each of the table's columns.

    ours: a row's number in a column as it was measured here, in percent, NaN without one: a hatched bar beside the
      printed one.
    """
    most = max(len(table.rows) for table in tables)
    names = max((_columns(table) for table in tables), key=len)
    width = max(5.5, 1.0 + 0.8 * most)
    legend_columns = max(1, int(width / (0.6 + 0.07 * max(map(len, names)) + 0.3 * (ours is not None))))
    legend_rows = -(-len(names) * (1 + (ours is not None)) // legend_columns)
    figure = canvas.new(width, (2.7 + 0.17 * legend_rows) * len(tables))
    for axes, table in zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True):
        columns = _columns(table)
        bars = [(column, {"label": column}, _printed(table, column)) for column in columns]
        if ours is not None:
            measured = {column: [ours(table, row, column) for row in table.rows] for column in columns}
            hatched = {"hatch": "////", "edgecolor": "white", "alpha": 0.75}
            bars = [
                bar
                for column, style, values in bars
                for bar in (
                    (column, style, values),
                    (column, {"label": f"{column}, ours", **hatched}, measured[column]),
                )
            ]
        thick, drawn = 0.85 / len(bars), []
        for place, (column, style, values) in enumerate(bars):
            colour = f"C{columns.index(column) % 10}"
            at = np.arange(len(values)) + (place - (len(bars) - 1) / 2) * thick
            axes.bar(at, values, thick, color=colour, zorder=2, **style)
            drawn += values
        there = [value for value in drawn if not np.isnan(value)] or [0.0, 100.0]  # rows of ours alone, not run
        low, high = max(0, 10 * np.floor(min(there) / 10) - 5), max(there)
        axes.set_ylim(low, high + (high - low) * (0.03 + 0.09 * legend_rows))  # the legend is above the bars
        names = [shorten(row.label, 18) for row in table.rows]
        axes.set_xticks(np.arange(len(names)), names, fontsize=8, rotation=20, ha="right", parse_math=False)
        axes.set_ylabel("percent, cut below", fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        protocols = ", ".join(dict.fromkeys(row.protocol for row in table.rows))
        axes.set_title(f"{table.dataset} {table.split}, {protocols}: {table.title}", fontsize=8, parse_math=False)
        axes.grid(axis="y", color="0.9", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False, ncols=legend_columns, loc="upper left")
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def _columns(table: papers.Table) -> list[str]:
    """Those of metrics; what a run costs has no bar."""
    names = dict.fromkeys(column.name for row in table.rows for column in row.columns)
    return [name for name in names if name not in papers.COSTS]


def _printed(table: papers.Table, column: str) -> list[float]:
    return [row.numbers.get(column, np.nan) for row in table.rows]
