"""CSV, TSV and JSONL files into raw rows: which files, which columns; labels and images are not understood yet."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxmlic.data.prepare.tables.annotations import parse_value, read_text, repeated
from jaxmlic.errors import UserError, did_you_mean

SPLIT_NAMES = {"train": "train", "trainval": "train", "training": "train"}
SPLIT_NAMES |= {"val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
FILE_COLUMNS = ("file", "image", "filename", "file_name", "name", "path", "id")
LABEL_COLUMNS = ("labels", "label", "categories", "tags", "classes", "words")
SINGLE_TABLES = ("labels.csv", "labels.jsonl", "annotations.csv")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
MAX_DEPTH = 100
"""Lists and objects within one another on a line of JSONL."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclass(frozen=True)
class Options:
    """How to read a table; every field is the command line option of the same name."""

    images: str | None = None
    classes: str | None = None
    boxes: str | None = None
    file_column: str | None = None
    labels_column: str | None = None
    split_column: str | None = None
    separator: str = "auto"
    label_values: str | None = None


@dataclass(frozen=True)
class Problem:
    """One mistake: `file` is the name of the table, `line` the line in it (0: the whole file)."""

    file: str
    line: int
    why: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.why}" if self.line else f"{self.file}: {self.why}"


@dataclass
class Raw:
    """A row as it stands in the file: `labels` is a cell, a list of names, a dict, or a tuple of one-hot cells."""

    where: tuple[str, int]
    name: str
    split: str
    labels: str | list | dict | tuple
    boxes: Sequence = ()


@dataclass
class Sheet:
    """The raw rows of one file; `columns` are the class names of its one-hot columns if it has them and a header."""

    path: Path
    rows: list[Raw] = field(default_factory=list)
    columns: list[str] | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, line: int, why: str) -> None:
        """Note a mistake on a line of this file."""
        self.problems.append(Problem(self.path.name, line, why))


def find_tables(source: str | os.PathLike, required: bool = True) -> tuple[list[tuple[Path, str | None]], Path]:
    """The tables that `source` stands for, each with the split its name gives (or None), and their folder.

    In a folder, files named train, trainval, training, val, valid, validation, test or testing are the splits; else
    one of labels.csv, labels.jsonl, annotations.csv; else the only table there is. A folder without a table is an error
    only if one is `required`.

    Raises:
      UserError: nothing there, no table, several that could be meant, or two that give the same split.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix.lower() not in TABLE_SUFFIXES:
            raise UserError(f"{source}: a table must be a .csv, .tsv or .jsonl file")
        return [(source, None)], source.parent
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder: give --source a table or a folder that holds one")
    tables = sorted(path for path in source.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.is_file())
    named = {}
    for path in tables:
        split = SPLIT_NAMES.get(path.stem.lower())
        if split in named:
            raise UserError(
                f"{source}: {named[split].name} and {path.name} both give the split {split!r}: "
                "remove one, or give --source one file"
            )
        if split:
            named[split] = path
    if named:
        return [(named[split], split) for split in ("train", "val", "test") if split in named], source
    single = [path for path in tables if path.name.lower() in SINGLE_TABLES] or tables
    if len(single) == 1:
        return [(single[0], None)], source
    if not single and not required:
        return [], source
    if not single:
        raise UserError(
            f"{source}: no table and no class folders there: add train.csv and test.csv, or labels.csv (.tsv, .jsonl)"
        )
    names = ", ".join(path.name for path in single[:5])
    raise UserError(f"{source}: which of {names} is the table? Give --source that file")


def read_sheet(
    path: Path,
    split: str | None,
    options: Options,
    values: Mapping[str, int],
    is_image: Callable[[str], bool] = lambda name: False,
) -> Sheet:
    """Read one table; rows that cannot be read become problems of the sheet.

    Args:
      path: the file.
      split: the split of every row; None when a split column divides the file (without one, what the file's name gives,
        else "train").
      options: how the user describes the table.
      values: the texts of one-hot values (`annotations.parse_label_values`).
      is_image: whether a name stands for an image that exists; distinguishes a first row from a header.

    Raises:
      UserError: the file as a whole cannot be read, or holds no rows.
    """
    sheet = Sheet(path)
    default = split or SPLIT_NAMES.get(path.stem.lower(), "train")
    if path.suffix.lower() == ".jsonl":
        _read_jsonl(sheet, default, split is None, options)
    else:
        _read_delimited(sheet, default, split is None, options, values, is_image)
    if not sheet.rows and not sheet.problems:
        raise UserError(f"{path.name}: there are no rows in {path}: add rows or remove the file")
    return sheet


def _read_jsonl(sheet: Sheet, default: str, divided: bool, options: Options) -> None:
    unused = set()
    for number, line in enumerate(read_text(sheet.path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, object_pairs_hook=_object)
            _refuse_odd_json(line, entry)
        except (ValueError, RecursionError) as error:
            sheet.problem(number, f"not valid JSON ({getattr(error, 'msg', error)}): one object a line")
            continue
        if not isinstance(entry, dict):
            sheet.problem(number, 'not a JSON object: write {"file": ..., "labels": [...]}')
            continue
        file_key = options.file_column or next((key for key in FILE_COLUMNS if key in entry), "file")
        label_key = options.labels_column or next((key for key in LABEL_COLUMNS if key in entry), "labels")
        missing = next((key for key in (file_key, label_key) if entry.get(key) is None), None)
        if missing:
            sheet.problem(number, f'no "{missing}" in this object')
            continue
        split_key = options.split_column or "split"
        split = str(entry[split_key]) if divided and split_key in entry else default
        boxes = entry.get("boxes") or []
        if not isinstance(boxes, list):
            sheet.problem(number, '"boxes" is not a list')
            continue
        unused |= set(entry) - {file_key, label_key, split_key, "boxes"}
        where = (sheet.path.name, number)
        sheet.rows.append(Raw(where, str(entry[file_key]).strip(), split.strip(), entry[label_key], boxes))
    _note_unused(sheet, sorted(unused))


def _object(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object; ValueError when it has a key twice, of which json would keep the last without a word."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        raise ValueError(f"{repeated(key for key, _ in pairs)!r} is there twice")
    return entry


def _refuse_odd_json(line: str, entry) -> None:
    """ValueError for what json takes and UTF-8 or Python's stack does not: half surrogate pairs, deep nesting."""
    if "\\ud" in line.lower():
        json.dumps(entry, ensure_ascii=False).encode()
    level, depth = [entry] if line.count("[") + line.count("{") > MAX_DEPTH else [], 0
    while level:
        level = [v for node in level if isinstance(node, dict | list) for v in _values(node)]
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _values(node: dict | list) -> Iterable:
    return node.values() if isinstance(node, dict) else node


def _note_unused(sheet: Sheet, names: Sequence[str]) -> None:
    if names:
        sheet.notes.append(f"{sheet.path.name}: columns not used: {', '.join(names)}")


def _records(sheet: Sheet) -> Iterator[tuple[int, list[str]]]:
    """(line on which the record starts, cells) of every record that is not blank."""
    delimiter = "\t" if sheet.path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(read_text(sheet.path), newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{sheet.path.name}:{line}: not valid CSV ({error}): check the quotes") from None
        if any(cell.strip() for cell in cells):
            yield line, cells
        line = reader.line_num + 1


def _read_delimited(sheet: Sheet, default: str, divided: bool, options: Options, values, is_image) -> None:
    records = list(_records(sheet))
    if not records:
        raise UserError(f"{sheet.path.name}: the file {sheet.path} is empty: add rows or remove the file")
    header = [cell.strip() for cell in records[0][1]] if _is_header(records[0][1], options, is_image) else None
    if header is not None:
        del records[0]
        twice = repeated(filter(None, header))
        if twice:
            raise UserError(f"{sheet.path.name}:1: two columns are named {twice!r}: rename one")
    width = len(header) if header is not None else len(records[0][1])
    good = []
    for line, cells in records:
        if len(cells) != width:
            sheet.problem(line, f"{len(cells)} columns where the first line has {width}: quote cells that hold commas")
        else:
            good.append((line, cells))
    if not good:
        return
    file_at, split_at, label_at, hot = _columns(sheet, header, good, options, values)
    for line, cells in good:
        labels = cells[label_at] if hot is None else tuple(cells[i] for i in hot)
        split = cells[split_at].strip() if divided and split_at is not None else default
        sheet.rows.append(Raw((sheet.path.name, line), cells[file_at].strip(), split, labels))


def _is_header(cells: Sequence[str], options: Options, is_image: Callable[[str], bool]) -> bool:
    """A first line is a header when it holds a given or well-known column name, or does not start with an image."""
    names = [cell.strip() for cell in cells]
    given = {options.file_column, options.labels_column, options.split_column}
    if given.intersection(names) or {name.lower() for name in names}.intersection(FILE_COLUMNS[:4]):
        return True
    return not names[0].lower().endswith(IMAGE_SUFFIXES) and not is_image(names[0])


def _find(header: Sequence[str], given: str | None, known: Sequence[str], sheet: Sheet, option: str) -> int | None:
    """Index of the column the user named, else of the first known name, else None."""
    if given is not None:
        if given not in header:
            hint = did_you_mean(given, header)
            raise UserError(f"{sheet.path.name}:1: no column {given!r}{hint}: {option} must name one of the header")
        return header.index(given)
    lowered = [name.lower() for name in header]
    return next((lowered.index(name) for name in known if name in lowered), None)


def _columns(sheet: Sheet, header, rows, options: Options, values) -> tuple[int, int | None, int | None, list | None]:
    """(file column, split column or None, label column or None, one-hot columns or None)."""
    name, width = sheet.path.name, len(rows[0][1])
    if header is None:
        asked = next((o for o in ("file_column", "labels_column", "split_column") if getattr(options, o)), None)
        if asked:
            raise UserError(f"{name}: there is no header line for --{asked.replace('_', '-')}: add one")
        hot = list(range(1, width))
        if _one_hot(rows, hot, values):
            return 0, None, None, hot
        if width == 2:
            return 0, None, 1, None
        raise UserError(
            f"{name}:{rows[0][0]}: {width} column{'s' * (width > 1)} and no header line: write two columns, file and "
            "labels, with labels that hold commas in quotes, or add a header line"
        )
    file_at = _find(header, options.file_column, FILE_COLUMNS, sheet, "--file-column")
    if file_at is None:
        raise UserError(f"{name}:1: no column of file names ({', '.join(FILE_COLUMNS)}): name it with --file-column")
    split_at = _find(header, options.split_column, ("split",), sheet, "--split-column")
    label_at = _find(header, options.labels_column, LABEL_COLUMNS, sheet, "--labels-column")
    others = [i for i in range(width) if i not in (file_at, split_at)]
    # A class may be called "words": a column of 1/0/-1 among others of the kind is one-hot, unless named by the user.
    if options.labels_column is None and (label_at is None or len(others) > 1) and _one_hot(rows, others, values):
        sheet.columns = [header[i] for i in others]
        if "" in sheet.columns:
            raise UserError(f"{name}:1: a column of labels has no name: give every class a name")
        return file_at, split_at, None, others
    if label_at is None:
        raise UserError(
            f"{name}:1: no column of labels ({', '.join(LABEL_COLUMNS)}), and the other columns are not all "
            "1, 0 or -1: name it with --labels-column"
        )
    _note_unused(sheet, [header[i] or f"number {i + 1}" for i in others if i != label_at])
    return file_at, split_at, label_at, None


def _one_hot(rows, columns: Sequence[int], values: Mapping[str, int]) -> bool:
    """Whether these columns hold the values of labels in at least half of the rows; the rest are then mistakes."""
    if not columns:
        return False
    good = sum(all(parse_value(cells[i], values) is not None for i in columns) for _, cells in rows)
    return 2 * good >= len(rows)


def read_boxes(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, cells by column name) of a table of boxes; UserError without its columns or with a ragged row."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: --boxes names a table with file,label,xmin,ymin,xmax,ymax[,difficult]")
    records = list(_records(Sheet(path)))
    header = [cell.strip().lower() for cell in records[0][1]] if records else []
    missing = [name for name in ("file", "label", "xmin", "ymin", "xmax", "ymax") if name not in header]
    if missing:
        raise UserError(f"{path.name}:1: no column {missing[0]!r}: boxes need file,label,xmin,ymin,xmax,ymax")
    ragged = next((line for line, cells in records if len(cells) != len(header)), None)
    if ragged:
        raise UserError(f"{path.name}:{ragged}: not {len(header)} columns as in the first line")
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in records[1:]]
