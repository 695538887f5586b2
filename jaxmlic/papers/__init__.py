"""The papers' tables as they are printed, one TOML a paper: what each column is, under which protocol, who measured it.

A row names the entry of an experiment's sweep() that does the same, where there is one. The numbers are never computed
with: they are shown beside ours.
"""

import dataclasses
import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path

from jaxmlic.errors import unknown

_FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
      name: the metric's name in `jaxmlic.metrics.evaluate`; "AP <class>", "<metric> std" or "error" where it has none.
      printed: the paper's heading.
      unit: "percent", or "labels" where it counts them.
      meaning: what is averaged over what.
    """

    name: str
    printed: str
    unit: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
      label: the paper's name of the method.
      columns: what the values are; most rows have the table's, quoted ones may have others.
      values: as printed, None where there is a dash.
      protocol: how labels are decided and AP is computed, a name of `jaxmlic.metrics.PROTOCOLS` or one like it.
      sweep: `FILE[:ARG]` of the experiment that has the entry.
      entry: name in its sweep() or ensembles(), "" for a method that does not exist here.
      measured_by: "the paper", or where the row is quoted from.
      note: misprints and readings.
    """

    label: str
    columns: tuple[Column, ...]
    values: tuple[float | None, ...]
    protocol: str
    sweep: str
    entry: str
    measured_by: str
    note: str

    @property
    def numbers(self) -> dict[str, float]:
        """The printed values by column name."""
        return {
            column.name: value for column, value in zip(self.columns, self.values, strict=True) if value is not None
        }

    @property
    def shown(self) -> dict[str, float | None]:
        """`numbers`, or all columns where the row prints none."""
        return self.numbers or {column.name: None for column in self.columns}

    @property
    def scales(self) -> dict[str, float]:
        """What a metric of ours is multiplied by to be in the unit of its column."""
        return {column.name: 100.0 if column.unit == "percent" else 1.0 for column in self.columns}


@dataclasses.dataclass(frozen=True)
class Table:
    """The part of a printed table that is about one data set and one protocol; `number` is the paper's."""

    number: str
    title: str
    dataset: str
    split: str
    rows: tuple[Row, ...]
    notes: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """A printed figure, or a table that holds no metrics: `number` is the paper's ("Fig. 7"), `command` draws ours, and
    `note` says what differs."""

    number: str
    title: str
    command: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper, its tables and its figures of results."""

    name: str
    title: str
    authors: str
    venue: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]


def names() -> list[str]:
    """The papers there are, by the names of their experiments."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


@functools.cache
def load(name: str) -> Paper:
    """The paper of this name; UserError for an unknown one."""
    if name not in names():
        raise unknown("paper", name, names())
    with (_FOLDER / f"{name}.toml").open("rb") as file:
        found = tomllib.load(file)
    tables = tuple(_table(values, found["columns"]) for values in found["tables"])
    figures = tuple(Figure(**values) for values in found.get("figures", ()))
    return Paper(name, found["title"], found["authors"], found["venue"], tables, figures)


def rows_of(experiment: str, dataset: str, entry: str) -> Iterator[tuple[Paper, Table, Row]]:
    """Every printed row that an entry of an experiment stands for, such as ("cnn_rnn", "coco2014", "coco2014_warp").

    Sweeps of one data set may leave its name out of the entry's.
    """
    for name in names():
        paper = load(name)
        for table in paper.tables:
            if table.dataset != dataset:
                continue
            for row in table.rows:
                if row.sweep.partition(":")[0] == experiment and row.entry in (entry, f"{dataset}_{entry}"):
                    yield paper, table, row


def _table(values: dict, columns: dict[str, dict]) -> Table:
    rows = tuple(
        _row({"protocol": values["protocol"], "sweep": values["sweep"], "columns": values["columns"], **row}, columns)
        for row in values["rows"]
    )
    own = {key: values[key] for key in ("number", "title", "dataset", "split")}
    return Table(**own, rows=rows, notes=" ".join(values.get("notes", "").split()))


def _row(values: dict, columns: dict[str, dict]) -> Row:
    found = tuple(Column(name, **columns["AP" if name.startswith("AP ") else name]) for name in values["columns"])
    numbers = tuple(None if value == "-" else float(value) for value in values["values"])
    return Row(
        label=values["label"],
        columns=found,
        values=numbers,
        protocol=values["protocol"],
        sweep=values["sweep"],
        entry=values.get("entry", ""),
        measured_by=values["measured_by"],
        note=values.get("note", ""),
    )
