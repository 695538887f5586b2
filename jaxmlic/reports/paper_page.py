"""A paper's tables with ours beside the printed numbers: as text for a terminal, and as a page in Markdown."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxmlic.papers import Paper
from jaxmlic.reports import tables


def overview(found: Sequence[Paper]) -> str:
    """A line for each table of each paper, and one for each figure."""
    rows = []
    for paper in found:
        for table in paper.tables:
            here = sum(row.entry != "" for row in table.rows)
            rows.append([f"{paper.name}/{table.number}", table.dataset, f"{here} of {len(table.rows)}", table.title])
        rows += [[f"{paper.name}, {figure.number}", "", "", figure.title] for figure in paper.figures]
    return tables.table(rows, header=["table", "data", "rows here", "title"])


def text(paper: Paper, lines: Sequence, workdir: str, needs: Sequence[str]) -> str:
    """The tables of `experiments.reproduce.Line`s, two lines a row: the paper's and ours."""
    parts = [f"{paper.title} ({', '.join(filter(None, (paper.authors, paper.venue)))})"]
    for table, own in _by_table(lines):
        names, body = _body(own, lambda line: "")
        head = f"Table {table.number}. {table.title}: {table.dataset}, {table.split}"
        parts.append(f"{head}\n{tables.table(body, '<<>', header=['row', 'by', *map(_short, names)], indent=2)}")
        parts += [f"  {table.notes}"] if table.notes else []
        parts += ["\n".join(f"  {note}" for note in notes)] if (notes := _notes(own)) else []
    commands = [line.command(workdir) for line in lines]
    parts.append("\n".join(["needs:", *(f"  {need}" for need in needs)]) if needs else "")
    parts.append("\n".join(["commands:", *(f"  {c}" for c in dict.fromkeys(filter(None, commands)))]))
    return "\n\n".join(filter(None, parts))


def markdown(paper: Paper, lines: Sequence, workdir: str, needs: Sequence[str]) -> str:
    """The paper's page: what is read into it, what its runs need, and each table with ours."""
    parts = [
        f"# {paper.title}",
        f"{', '.join(filter(None, (paper.authors, paper.venue)))}. Made by `jaxmlic reproduce {paper.name} --out=DIR`.",
    ]
    parts.append("Printed numbers are in percent; a row that no entry stands for is a method that does not exist here.")
    if needs:
        parts.append("\n".join(["## What the runs need", "", *(f"- {need}" for need in needs)]))
    for table, own in _by_table(lines):
        names, body = _body(own, lambda line: f"`{_entry_names(line)}`")
        head = ["row", "by", *map(_short, names)]
        grid = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
        parts.append(
            f"## Table {table.number}: {table.title}\n\n{table.dataset}, {table.split}. {table.notes}".rstrip()
        )
        parts.append("\n".join(grid))
        commands = dict.fromkeys(line.command(workdir) for line in own if line.entries)
        parts.append("\n".join(["```", *commands, "```"])) if commands else None
        parts += ["\n".join(f"- {note}" for note in notes)] if (notes := _notes(own)) else []
    if paper.figures:
        rows = [f"- {figure.number}, {figure.title}: {_command(figure)}" for figure in paper.figures]
        parts.append("\n".join(["## Figures", "", *rows]))
    return "\n\n".join(filter(None, parts)) + "\n"


def _command(figure) -> str:
    return (f"`{figure.command}`" if figure.command else "none") + (f"; {figure.note}" if figure.note else "")


def _by_table(lines: Sequence) -> list[tuple]:
    found: dict[int, list] = {}
    for line in lines:
        found.setdefault(id(line.table), []).append(line)
    return [(own[0].table, own) for own in found.values()]


def _body(lines: Sequence, ours: Callable[[object], str]) -> tuple[list[str], list[list[str]]]:
    """The columns' names, and the cells of the printed rows with ours below each; `ours` is the first cell of those."""
    # Rows of ours alone print nothing and have every column: they come first, so that these keep their order.
    rows = sorted((line.row for line in lines), key=lambda row: bool(row.numbers))
    names = list(dict.fromkeys(name for row in rows for name in row.shown))
    body = []
    for line in lines:
        body.append([line.row.label, _who(line), *(_printed(line, name) for name in names)])
        if line.entries:
            body.append([ours(line), _ours_title(line), *(_ours(line, name) for name in names)])
    return names, body


def _notes(lines: Sequence) -> list[str]:
    own = [f"{line.row.label}: {line.row.note}" for line in lines if line.row.note]
    return own + [f"{line.row.label}: {note}" for line in lines for note in line.notes]


def _who(line) -> str:
    return line.row.measured_by + ("" if line.entries or line.notes else "; not here")


def _entry_names(line) -> str:
    names = [entry.name for entry in line.entries]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _ours_title(line) -> str:
    count = f"{len(line.ours)} run{'s' * (len(line.ours) != 1)}" if line.ours else "not run"
    other = f" on {line.dataset}" if line.dataset != line.table.dataset else ""
    return f"ours{other}, {line.protocol}, {count}"


def _short(name: str) -> str:
    return name.removeprefix("AP ")


def _printed(line, name: str) -> str:
    value = line.row.numbers.get(name)
    return "-" if value is None else f"{value:g}"


def _ours(line, name: str) -> str:
    mean, spread = line.our_number(name)
    if np.isnan(mean):
        return ""
    return f"{mean:.1f}" + ("" if np.isnan(spread) else f" ± {spread:.1f}")
