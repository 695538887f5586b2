"""A user's CSV, TSV or JSONL table of images and labels, read into rows.

`read` finds the tables of a folder, which columns are what, which character separates labels, what the values of
one-hot columns mean and where each image lies; rows that are wrong are collected as problems with file and line.
What it decided on its own is in `Table.notes`, one phrase each, for the summary.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxmlic.data.prepare.sources.files import File
from jaxmlic.data.prepare.tables import annotations
from jaxmlic.data.prepare.tables.annotations import Box, Encoder, Mistake
from jaxmlic.data.prepare.tables.images import BucketImages, Images, find_images
from jaxmlic.data.prepare.tables.sheets import (
    Options,
    Problem,
    Raw,
    Sheet,
    find_tables,
    read_boxes,
    read_sheet,
)
from jaxmlic.errors import UserError

__all__ = ["Options", "Problem", "Row", "Table", "read"]


@dataclass
class Row:
    """One image: its id (the name in the table), its file, its labels int8 [C] and its boxes.

    `where` is (file, line) of the annotation; line 0 stands for the whole file.
    """

    id: str
    image: File
    labels: np.ndarray
    boxes: list[Box]
    where: tuple[str, int]


@dataclass
class Table:
    """All good rows by split in the tables' order; what was wrong; what was decided.

    `left_out` lists what is known to be missing and no mistake (images that their owners deleted); `named_splits` are
    further divisions of the same rows, {name: {part: ids}}, that become splits called "name/part"; `listed` holds the
    owner's lists in the same form, the missing images included, for divisions that must not depend on what is missing.
    """

    class_names: list[str]
    splits: dict[str, list[Row]]
    problems: list[Problem]
    notes: list[str]
    has_boxes: bool
    label_values: str = "1,0,-1"
    left_out: list[Problem] = field(default_factory=list)
    named_splits: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    listed: dict[str, dict[str, list[str]]] = field(default_factory=dict)


def read(source: str | os.PathLike, options: Options | None = None) -> Table:
    """Read a table, or a folder that holds tables, and find every image.

    Args:
      source: a .csv, .tsv or .jsonl file, or a folder (see `sheets.find_tables`).
      options: how the user describes it.

    Returns:
      a Table; rows with a mistake are in `problems` and not in `splits`.

    Raises:
      UserError: nothing can be read as a whole (missing folder, empty table, unclear columns or separators ...).
    """
    options = options or Options()
    values = annotations.parse_label_values(options.label_values)
    tables, folder = find_tables(source)
    if options.split_column is not None and len(tables) > 1:
        names = " and ".join(path.name for path, _ in tables)
        raise UserError(f"--split-column does not go with {names}, whose names are the splits: give --source one file")
    images = find_images(folder, options.images)
    sheets = [read_sheet(path, split, options, values, images.has) for path, split in tables]
    problems = [problem for sheet in sheets for problem in sheet.problems]
    notes = [note for sheet in sheets for note in sheet.notes]
    if options.label_values is None:
        _refuse_rare_zeros(sheets)
    class_path = _class_list(folder, options)
    names = _class_names(sheets, class_path, options, problems, notes)
    encoder = Encoder(names, values, class_path.name if class_path else "the labels of an image")
    rows = _rows(sheets, encoder, images, problems)
    if options.boxes:
        _add_boxes(Path(options.boxes), rows, encoder, images, problems)
    places = {path.name: place for place, (path, _) in enumerate(tables)}
    problems.sort(key=lambda problem: (places.get(problem.file, len(places)), problem.line))
    found = list(dict.fromkeys(raw.split for sheet in sheets for raw in sheet.rows if _can_be_split(raw.split)))
    if len(tables) == 1 and tables[0][1] is None and found == ["train"]:
        notes.append("no split column: every image is in the split 'train'")
    order = sorted(found, key=lambda name: ("train", "val", "test", name).index(name))
    return Table(
        class_names=names,
        splits={split: [row for row, row_split in rows if row_split == split] for split in order},
        problems=problems,
        notes=notes,
        label_values=options.label_values or "1,0,-1",
        has_boxes=any(row.boxes for row, _ in rows),
    )


def _refuse_rare_zeros(sheets: list[Sheet]) -> None:
    """-1 more often than 0 is nearly always VOC's "absent"; read as unknown it would leave nothing to learn from."""
    minus = zero = 0
    where = None
    for sheet in sheets:
        for raw in sheet.rows:
            cells = raw.labels
            if isinstance(cells, dict):
                cells = tuple(str(value) for value in cells.values())
            if not isinstance(cells, tuple):
                continue
            stripped = [cell.strip().removesuffix(".0") for cell in cells]
            minus += stripped.count("-1")
            # A dict need not name the classes that are absent.
            zero += stripped.count("0") + stripped.count("1") * isinstance(raw.labels, dict)
            where = where or sheet.path.name
    if minus > zero:
        raise UserError(
            f"{where}: the value -1 occurs {minus:,} times and 0 only {zero:,} times: if -1 means absent and 0 unknown "
            "(as in VOC) add --label-values=1,-1,0; if -1 does mean unknown add --label-values=1,0,-1"
        )


def _class_list(folder: Path, options: Options) -> Path | None:
    if options.classes is not None:
        if not Path(options.classes).is_file():
            raise UserError(f"{options.classes}: no such file: --classes names a text file with one class name a line")
        return Path(options.classes)
    return next((folder / name for name in annotations.CLASS_LISTS if (folder / name).is_file()), None)


def _class_names(sheets, class_path, options, problems, notes) -> list[str]:
    """The class names, in their order; on the way every raw row's labels become names or (name, cell) pairs."""
    classes = annotations.read_class_list(class_path) if class_path else None
    if class_path:
        notes.append(f"{len(classes)} classes from {class_path.name}")
    texts = ((_where(raw), raw.labels) for sheet in sheets for raw in sheet.rows if isinstance(raw.labels, str))
    separator = None
    if any(isinstance(raw.labels, str) for sheet in sheets for raw in sheet.rows):
        separator, note = annotations.choose_separator(texts, options.separator, classes)
        notes.append(note)
    elif options.separator != "auto":
        raise UserError("--separator: no cell holds label names here, so there is nothing to separate")
    header = next((sheet.columns for sheet in sheets if sheet.columns), None)
    union = set()
    for sheet in sheets:
        columns = _one_hot_names(sheet, header, classes, class_path)
        good = []
        for raw in sheet.rows:
            try:
                raw.labels = _resolve(raw.labels, separator, columns)
            except Mistake as mistake:
                problems.append(Problem(*raw.where, str(mistake)))
                continue
            union.update(raw.labels)
            good.append(raw)
        sheet.rows = good
    if classes is not None:
        return classes
    if header is not None:
        notes.append(f"{len(header)} classes from the header")
        return header
    if not union and any(sheet.rows for sheet in sheets):
        why = f" ({len(problems):,} rows are wrong, such as {problems[0]})" if problems else ""
        raise UserError(f"{sheets[0].path.name}: not one row has a label: there are no classes to learn{why}")
    notes.append(f"{len(union)} classes: the names that occur, sorted")
    return sorted(union)


def _one_hot_names(sheet: Sheet, header, classes, class_path) -> list[str] | None:
    """Class names of a sheet's one-hot columns; UserError where they contradict the class list or another table."""
    width = next((len(raw.labels) for raw in sheet.rows if isinstance(raw.labels, tuple)), None)
    if width is None:
        return None
    name = sheet.path.name
    if sheet.columns is None:
        if classes is None:
            raise UserError(f"{name}: {width} columns of labels and no header line: add one, or --classes=FILE")
        if len(classes) != width:
            raise UserError(f"{name}: {width} columns of labels, but {class_path.name} has {len(classes)} classes")
        return classes
    for known, origin in ((classes, class_path and class_path.name), (header, "the other table")):
        odd = sorted(set(sheet.columns) ^ set(known or sheet.columns))
        if odd:
            side = "only in the header" if odd[0] in sheet.columns else f"only in {origin}"
            raise UserError(f"{name}:1: class {odd[0]!r} is {side}: header and {origin} must name the same classes")
    return sheet.columns


def _resolve(labels, separator: str | None, columns: list[str] | None) -> list[str] | dict:
    """A list of names (present) or a dict of name -> cell."""
    if isinstance(labels, str):
        return annotations.split_cell(labels, separator)
    if isinstance(labels, tuple):
        return dict(zip(columns, labels, strict=True))
    if not isinstance(labels, (list, dict)) or not all(isinstance(name, str) for name in labels):
        raise Mistake("labels must be a list of names, a text, or an object of name: value")
    names = [name.strip() for name in labels]
    if "" in names:
        raise Mistake("empty label name")
    if not isinstance(labels, dict):
        return names
    if len(set(names)) < len(names):
        raise Mistake(f"{annotations.repeated(names)!r} is there twice")
    return dict(zip(names, labels.values(), strict=True))


def _can_be_split(name: str) -> bool:
    # Files are named after it, and a file's name has 255 bytes at most.
    return re.fullmatch(r"[A-Za-z]\w{0,99}", name, re.ASCII) is not None and name != "all"


def _where(raw: Raw) -> str:
    return f"{raw.where[0]}:{raw.where[1]}"


def _rows(sheets, encoder: Encoder, images: Images | BucketImages, problems: list[Problem]) -> list[tuple[Row, str]]:
    """Rows whose labels and image are good, with their splits."""
    rows, seen = [], {}
    for raw in (raw for sheet in sheets for raw in sheet.rows):
        try:
            if not raw.name:
                raise Mistake("no file name")
            if not _can_be_split(raw.split):
                raise Mistake(f"{raw.split!r} cannot name a split: use up to 100 letters, digits and _ (not 'all')")
            # A missing image still takes its name, so that its second row is a repetition and not a second loss.
            path = images.find(raw.name)
            first = seen.setdefault(path or raw.name, _where(raw))
            if first != _where(raw):
                raise Mistake(f"{raw.name!r} is already on {first}: an image may have one row in one split")
            if path is None:
                raise Mistake(f"no image {raw.name!r} in {images.looked_in}: add it, or give its folder with --images")
            if isinstance(raw.labels, dict):
                labels = encoder.from_values(raw.labels.items())
            else:
                labels = encoder.from_names(raw.labels)
            boxes = [encoder.box(entry, raw.where) for entry in raw.boxes]
        except Mistake as mistake:
            problems.append(Problem(*raw.where, str(mistake)))
            continue
        rows.append((Row(raw.name, images.file(path), labels, boxes, raw.where), raw.split))
    return rows


def _add_boxes(path: Path, rows, encoder: Encoder, images: Images | BucketImages, problems) -> None:
    """Add the boxes of a table with one box a row; an image with a wrong box is taken out of `rows`."""
    by_path = {row.image.path: row for row, _ in rows}
    spoiled = set()
    for line, cells in read_boxes(path):
        try:
            row = by_path.get(images.find(cells["file"]))
            if row is None:
                raise Mistake(f"a box for {cells['file']!r}, which is not among the rows of the table")
            entry = {"label": cells["label"], "difficult": cells.get("difficult")}
            entry["bbox"] = [cells[edge] for edge in ("xmin", "ymin", "xmax", "ymax")]
            try:
                row.boxes.append(encoder.box(entry, (path.name, line)))
            except Mistake:
                spoiled.add(row.image.path)
                raise
        except Mistake as mistake:
            problems.append(Problem(path.name, line, str(mistake)))
    rows[:] = [(row, split) for row, split in rows if row.image.path not in spoiled]
