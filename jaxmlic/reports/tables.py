"""Tables as plain text, the same on a terminal, in a file and in a pipe, and the cells of their numbers."""

import io
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

_MAX_NAME = 24  # characters of a name in a table of many columns


def table(rows: Sequence[Sequence[str]], align: str = "<", *, header: Sequence[str] = (), indent: int = 0) -> str:
    """Rows of cells as lines of columns two spaces apart, never cut or wrapped, whatever the terminal's width.

    Args:
      rows: cells, as many in each row; markup in them is shown as it is.
      align: "<" or ">" for each column; the last one also stands for the columns after it.
      header: the first line's cells, as many.
      indent: spaces before each line.
    """
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    lines = [header, *rows] if header else list(rows)
    for number in range(len(lines[0]) if lines else 0):
        right = align[min(number, len(align) - 1)] == ">"
        grid.add_column(justify="right" if right else "left", no_wrap=True)
    for line in lines:
        if len(line) != len(grid.columns):
            raise ValueError(f"{len(line)} cells in a table of {len(grid.columns)} columns: {list(line)}")
        grid.add_row(*(Text(str(cell)) for cell in line))
    # A width that no table has; no colours, and no HTML in notebooks.
    out = io.StringIO()
    Console(file=out, width=1_000_000, color_system=None, force_terminal=False, force_jupyter=False).print(grid)
    return "\n".join((" " * indent + line).rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) over runs; NaN where undefined."""
    array = np.array([np.nan if v is None else v for v in values], float)
    mean = float(array.mean()) if len(array) else float("nan")
    return mean, float(array.std(ddof=1)) if len(array) > 1 else float("nan")


def spread_cell(values: Sequence[float | None]) -> str:
    """Fractions as percent: "60.00 +- 14.14", or "60.00" of one run."""
    mean, deviation = spread(values)
    return f"{100 * mean:.2f}" + ("" if np.isnan(deviation) else f" +- {100 * deviation:.2f}")


def percent(fraction: float) -> str:
    """0.8333 -> "83.33"; an undefined one is "-"."""
    return "-" if np.isnan(fraction) else f"{100 * fraction:.2f}"


def shorten(name: str, length: int = _MAX_NAME) -> str:
    """A name cut to `length` characters."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
