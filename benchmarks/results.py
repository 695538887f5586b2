"""The pages of results from their data: docs/results/tables/*.toml fill places in RESULTS.md and docs.

    python benchmarks/results.py    # or `make results`

A page is prose with places for tables, `<!-- table: NAME [NAME ...] [| columns: A, B] [| rows: front] -->` to
`<!-- end -->`; this command writes what stands between. In place of `front`
rows may be given by how their names start. A data file is described in docs/results/reproducing.md; `result_row.py`
beside this file makes rows of finished runs.
"""

import argparse
import os
import re
import sys
import tomllib
from pathlib import Path

from jaxmlic.errors import UserError, unknown

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "docs" / "results" / "tables"
PAGES = [
    ROOT / "RESULTS.md",
    *sorted([*TABLES.parent.glob("*.md"), *ROOT.glob("docs/methods/*.md"), *ROOT.glob("docs/choosing/*.md")]),
]
FIELDS = ("date", "command", "machine", "load", "seeds", "test_read", "time", "source", "stale", "front")
# What is shown of a row's fields, and how; the load follows the machine.
SHOWN = dict(date="{date}", machine="machine {machine}{load}", seeds="seeds: {seeds}")
SHOWN |= dict(test_read="test read {test_read}", time="{time}")
PLACE = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end -->)", re.S)


def require(holds, message):
    if not holds:
        raise UserError(message)


def check_fields(where, fields, known):
    for field in set(fields) - set(known):
        raise unknown(f"{where}: field", field, known)


def load(name, folder=TABLES):
    """A data file, its rows as dicts: their fields, `name` (the first cell) and `cells` {column: text}."""
    path = folder / f"{name}.toml"
    require(path.is_file(), f"{path.name}: there is no such file in {folder}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=str)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path.name}: {error}") from None
    require({"title", "columns", "rows"} <= set(table), f"{path.name}: title, columns and rows have to be there")
    check_fields(path.name, table, ("title", "note", "columns", "rows", "commands", *FIELDS))
    machines = [row["name"] for row in load("machines", folder)["rows"]] if name != "machines" else ()
    return table | {"rows": [read_row(path.name, n, row, table, machines) for n, row in enumerate(table["rows"], 1)]}


def read_row(file, number, cells, table, machines):
    own = cells[-1] if cells and isinstance(cells[-1], dict) else {}
    cells = [str(cell).replace("|", r"\|") for cell in cells[: -1 if own else None]]
    row = {key: table[key] for key in FIELDS if key in table} | own
    where, columns = f"{file}, row {number} ({cells[0] if cells else 'empty'})", table["columns"]
    require(len(cells) == len(columns), f"{where}: {len(cells)} cells for {len(columns)} columns")
    check_fields(where, own, FIELDS)
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
    check_fields(f"{page.name}: {place}", options, ("columns", "rows"))
    tables, front = [load(name, folder) for name in names], options.get("rows") == "front"
    first, *columns = tables[0]["columns"]
    columns = options["columns"].split(", ") if "columns" in options else columns
    rows = [row for table in tables for row in table["rows"] if row.get("front") or not front]
    if not front:
        rows = [row for row in rows if row["name"].startswith(options.get("rows", ""))]
    if front:
        rows = [row | {"name": row["front"] if isinstance(row["front"], str) else row["name"]} for row in rows]
        rows.sort(key=lambda row: "source" in row)
    known = all(any(column in table["columns"] for table in tables) for column in columns)
    require(rows and known, f"{page.name}: {place!r} has no rows, or columns that no table has")
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
    if len(groups) < 2:
        return paragraphs + [f"```\n{command}\n```" for command, _ in groups]
    blocks = []
    for (command, own), names in groups.items():
        names = names if len(names) < 4 else [f"{names[0]}, and {len(names) - 1} more rows"]
        blocks.append("\n".join([*(f"# {line}" for line in [*names, own] if line), command]))
    summary = "<details><summary>Commands, dates, machines</summary>"
    return [*paragraphs, summary, "```\n" + "\n\n".join(blocks) + "\n```", "</details>"]


def describe(row, keys):
    return "; ".join(SHOWN[key].format_map(row) for key in keys if row.get(key))


def build(page, folder=TABLES):
    """A page's text with its places filled from the data files."""
    text = page.read_text(encoding="utf-8")
    return PLACE.sub(lambda place: f"{place[1]}\n{render(place[2], page, folder)}\n\n{place[3]}", text)


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for page, text in {page: build(page) for page in PAGES}.items():
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
