"""The pages of results from their data: docs/results/tables/*.toml fill RESULTS.md and docs/results/*.md.

    python benchmarks/results.py                                            # or `make results`
    python benchmarks/results.py --row TABLE RUN/scores/test.PROTOCOL.json    # prints a line for a data file

A page is prose with places for tables, `<!-- table: NAME [NAME ...] [| columns: A, B] [| rows: front] -->` to
`<!-- end -->`; what stands between is written by this command. `rows: front` takes rows with `front`, true or a name
for that place. A data file has `title`, `columns` and `rows`, a cell for each column and, in an inline table behind
them, fields of that row; at the top of the file they hold for all. A row needs `date`, `command` and `machine` (a row
of machines.toml), or `source` where it was not measured here. A command may be a name in the file's `[commands]`.
"""

import argparse
import json
import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "docs" / "results" / "tables"
PAGES = [ROOT / "RESULTS.md", *sorted(TABLES.parent.glob("*.md"))]
FIELDS = ("date", "command", "machine", "load", "seeds", "test_read", "time", "source", "stale", "front")
# What is shown of a row's fields, and how; the load follows the machine.
SHOWN = dict(date="{date}", machine="machine {machine}{load}", seeds="seeds: {seeds}")
SHOWN |= dict(test_read="test read {test_read}", time="{time}")
PLACE = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end -->)", re.S)
KEYS = {"P": "CP", "R": "CR", "F1": "CF1"}  # columns whose names in a score file's metrics are others


class Refused(Exception):
    """A data file or a place that cannot be; the message names it."""


def require(holds, message):
    if not holds:
        raise Refused(message)


def refuse_unknown(where, fields):
    unknown = sorted(set(fields) - set(FIELDS))
    require(not unknown, f"{where}: unknown fields {', '.join(unknown)}; known are {', '.join(FIELDS)}")


def load(name, folder=TABLES):
    """A data file, its rows as dicts: their fields, `name` (the first cell) and `cells` {column: text}."""
    path = folder / f"{name}.toml"
    require(path.is_file(), f"{path.name}: there is no such file in {folder}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=str)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path.name}: {error}") from None
    require({"title", "columns", "rows"} <= set(table), f"{path.name}: title, columns and rows have to be there")
    refuse_unknown(path.name, set(table) - {"title", "note", "columns", "rows", "commands"})
    machines = () if name == "machines" else [row["name"] for row in load("machines", folder)["rows"]]
    rows = [read_row(path.name, number, cells, table, machines) for number, cells in enumerate(table["rows"], 1)]
    return table | {"rows": rows}


def read_row(file, number, cells, table, machines):
    own = cells[-1] if cells and isinstance(cells[-1], dict) else {}
    cells = [str(cell).replace("|", r"\|") for cell in cells[: -1 if own else None]]
    row = {key: table[key] for key in FIELDS if key in table} | own
    where, columns = f"{file}, row {number} ({cells[0] if cells else 'empty'})", table["columns"]
    require(len(cells) == len(columns), f"{where}: {len(cells)} cells for {len(columns)} columns")
    refuse_unknown(where, own)
    if "source" not in row:
        absent = [key for key in ("date", "command", "machine") if not row.get(key)]
        require(not absent, f"{where}: no {', no '.join(absent)}; give it, or `source` if it was not measured here")
        require(re.fullmatch(r"\d{4}-\d\d-\d\d", str(row["date"])), f"{where}: date {row['date']!r} is not YYYY-MM-DD")
        require(row["machine"] in machines, f"{where}: machine {row['machine']!r} is not a row of machines.toml")
        row["command"] = table.get("commands", {}).get(row["command"], row["command"]).strip()
        row["load"] = f", {row['load']}" if "load" in row else ""
    return row | {"name": cells[0], "cells": dict(zip(columns, cells, strict=True))}


def render(place, page, folder=TABLES):
    """Markdown of a place: the rows of its tables, published ones last, and where their numbers come from."""
    names, *options = (part.strip() for part in place.split("|"))
    names, options = names.split(), dict(re.split(r":\s*", option, maxsplit=1) for option in options)
    tables, front = [load(name, folder) for name in names], options.get("rows") == "front"
    first, *columns = tables[0]["columns"]
    columns = re.split(r",\s*", options["columns"]) if "columns" in options else columns
    rows = [row for table in tables for row in table["rows"] if row.get("front") or not front]
    if front:
        rows = [row | {"name": row["front"] if isinstance(row["front"], str) else row["name"]} for row in rows]
        rows.sort(key=lambda row: "source" in row)
    known = {column for table in tables for column in table["columns"]}
    require(rows and set(columns) <= known, f"{page.name}: {place!r} has no rows, or columns that no table has")
    stale = list(dict.fromkeys(row["stale"] for row in rows if row.get("stale")))
    marks = {reason: f"†{number if len(stale) > 1 else ''}" for number, reason in enumerate(stale, 1)}
    lines = [f"| {' | '.join([first, *columns])} |", "|" + "---|" * (len(columns) + 1)]
    for row in rows:
        name = f"{row['name']} {marks.get(row.get('stale'), '')}".strip()
        lines.append(f"| {' | '.join([name, *(row['cells'].get(column, '') for column in columns)])} |")
    single = tables[0] if len(tables) == 1 and not options else {}
    paragraphs = [f"**{single['title']}**"] if single else []
    paragraphs += ["\n".join(lines), *(f"{mark} Stale: {reason}." for reason, mark in marks.items())]
    paragraphs += [single["note"].strip()] if "note" in single else []
    links = ", ".join(f"[{name}]({os.path.relpath(folder, page.parent)}/{name}.toml)" for name in names)
    return "\n\n".join(paragraphs + origin(rows, links))


def origin(rows, links):
    """Paragraphs: the sources of rows that were not measured here; what all others share; their commands."""
    measured = [row for row in rows if "source" not in row]
    shared = [key for key in SHOWN if measured and len({describe(row, [key]) for row in measured}) == 1]
    groups, sources = {}, {}
    for row in rows:
        key = row.get("source") or (row["command"], describe(row, [key for key in SHOWN if key not in shared]))
        (sources if "source" in row else groups).setdefault(key, []).append(row["name"])
    paragraphs = [f"{', '.join(names) if measured else 'All rows'}: {source}." for source, names in sources.items()]
    paragraphs.append("; ".join(filter(None, [describe(measured[0], shared) if shared else "", f"data: {links}."])))
    blocks = []
    for (command, own), names in groups.items():
        names = [f"{names[0]}, and {len(names) - 1} more rows"] if len(names) > 3 else names
        blocks.append("\n".join([f"# {line}" for line in [*names, own] if line and len(groups) > 1] + [command]))
    code = "```\n" + "\n\n".join(blocks) + "\n```"
    folded = ["<details><summary>Commands, dates, machines</summary>", code, "</details>"]
    return paragraphs + (folded if len(groups) > 1 else [code] if groups else [])


def describe(row, keys):
    return "; ".join(SHOWN[key].format_map(row) for key in keys if row.get(key))


def build(page, folder=TABLES):
    """A page's text with its places filled from the data files."""
    text = page.read_text(encoding="utf-8")
    return PLACE.sub(lambda place: f"{place[1]}\n{render(place[2], page, folder)}\n\n{place[3]}", text)


def row_of(table, scores):
    """A line for a data file from what `jaxmlic evaluate` wrote: percent, and counts as they are."""
    numbers = json.loads(Path(scores).read_text(encoding="utf-8"))
    cells = [numbers.get(KEYS.get(column, column), "") for column in load(table)["columns"][1:]]
    cells = ", ".join(f"{100 * x:.1f}" if isinstance(x, float) else json.dumps(x) for x in cells)
    return f'  ["NAME", {cells}, {{ date = "YYYY-MM-DD", command = "" }}],'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", nargs=2, metavar=("TABLE", "FILE"), help="FILE: RUN/scores/test.PROTOCOL.json")
    row = parser.parse_args().row
    if row:
        return print(row_of(*row))
    for page, text in {page: build(page) for page in PAGES}.items():
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(str(error))
