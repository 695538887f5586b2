"""Tables as one HTML file that needs nothing else: a click on a column's head sorts by it."""

from collections.abc import Mapping, Sequence
from html import escape

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; margin: .5em 0 2em; }
th, td { padding: .2em .8em; border-bottom: 1px solid #ccc; text-align: left; }
td { font-variant-numeric: tabular-nums; }
th { cursor: pointer; user-select: none; }
"""
_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0];
  const up = head.dataset.order = head.dataset.order === "down" ? "up" : "down";
  const text = row => row.cells[head.cellIndex].textContent;
  const compare = (a, b) => {
    const x = parseFloat(text(a)), y = parseFloat(text(b));
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
    const order = isNaN(x) ? text(a).localeCompare(text(b)) : y - x;
    return up === "down" ? order : -order;
  };
  body.append(...[...body.rows].sort(compare));
});
"""


def html(title: str, tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[object]]]]) -> str:
    """The page.

    Args:
      title: of the page.
      tables: {heading: (header, rows of cells)}.
    """
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{_table(*table)}" for heading, table in tables.items())
    head = f'<meta charset="utf-8">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>'
    body = f"<h1>{escape(title)}</h1>\n{body}\n<script>{_SCRIPT}</script>"
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
