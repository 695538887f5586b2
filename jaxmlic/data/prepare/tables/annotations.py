"""Label cells of a user's table to int8 rows: separators, class lists, one-hot values, boxes."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmlic.errors import UserError, did_you_mean

CLASS_LISTS = ("classes.txt", "words.txt", "labels.txt")
BOX_TOLERANCE = 1.0
"""A box may reach this many pixels over the image's edge (1-based annotations do); it is clipped there."""

_TRUTH = {"true": 1, "false": 0}  # what pandas.get_dummies(...).to_csv writes
SEPARATORS = {"space": " ", "tab": "\t", "comma": ",", "semicolon": ";", "bar": "|"}


class Mistake(ValueError):
    """What is wrong with one row; `table` turns it into a problem with file and line."""


@dataclass(frozen=True)
class Box:
    """One box in pixels of the upright image; `label` indexes the class names; `where` is (file, line)."""

    label: int
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax
    difficult: bool
    where: tuple[str, int]

    def normalised(self, height: int, width: int) -> dict:
        """As it is stored: `bbox` [ymin, xmin, ymax, xmax] in 0..1, `label`, `difficult`; Mistake if outside."""
        xmin, ymin, xmax, ymax = self.corners
        if min(xmin, ymin) < -BOX_TOLERANCE or xmax > width + BOX_TOLERANCE or ymax > height + BOX_TOLERANCE:
            raise Mistake(f"the box {list(self.corners)} lies outside the image of {width} x {height} pixels")
        edges = np.clip(np.array([ymin / height, xmin / width, ymax / height, xmax / width], np.float32), 0, 1)
        if not (edges[0] < edges[2] and edges[1] < edges[3]):
            raise Mistake(f"the box {list(self.corners)} has no area inside the image of {width} x {height} pixels")
        return {"bbox": edges.tolist(), "label": self.label, "difficult": self.difficult}


def read_text(path: Path) -> str:
    """The text of a UTF-8 file without its byte order mark; UserError when it is something else."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path.name}:{line}: not UTF-8 ({error.reason}): save {path} as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_class_list(path: Path) -> list[str]:
    """Class names, one a line, in the file's order; UserError on an empty or repeated name."""
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if lines == [""]:
        raise UserError(f"{path.name}: the class list {path} is empty: write one class name a line")
    first = {}
    for number, name in enumerate(lines, 1):
        if not name:
            raise UserError(f"{path.name}:{number}: empty class name: remove the line")
        if name in first:
            raise UserError(f"{path.name}:{number}: class {name!r} is already on line {first[name]}: remove one")
        first[name] = number
    return lines


def repeated(names: Iterable[str]) -> str | None:
    """The first name that is there twice, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def parse_label_values(text: str | None) -> dict[str, int]:
    """`"1,-1,0"` (present, absent, unknown) to a mapping from the text of a cell to 1, 0 or -1."""
    values = [value.strip() for value in ("1,0,-1" if text is None else text).split(",")]
    if len(values) != 3 or len(set(values)) != 3 or "" in values:
        raise UserError(
            f"--label-values={text}: give three different values PRESENT,ABSENT,UNKNOWN, such as 1,0,-1 or 1,-1,0"
        )
    return _TRUTH | dict(zip(values, (1, 0, -1), strict=True))


def parse_value(cell, values: Mapping[str, int]) -> int | None:
    """1, 0 or -1 for a cell (`"1"`, `"1.0"`, `1`, `true`), or None when it is none of the three values."""
    text = str(cell).strip()
    found = values.get(text)
    if found is None:
        found = values.get(text.removesuffix(".0").lower())
    return found


def choose_separator(
    cells: Iterable[tuple[str, str]], chosen: str, classes: Sequence[str] | None
) -> tuple[str | None, str]:
    """The separator of the label cells and one phrase for the summary.

    Args:
      cells: (`"train.csv:3"`, cell) of every text cell.
      chosen: what the user gave, or "auto": `;` if any cell holds it, else `|`, else `,`, else a space, but only if
        the class list proves it.
      classes: the class list, or None.

    Returns:
      (separator or None when every cell is one label, phrase).

    Raises:
      UserError: cells hold spaces, and what they mean is not clear.
    """
    if chosen != "auto":
        separator = SEPARATORS.get(chosen, chosen)
        if not separator or (separator.isspace() and separator not in " \t"):
            raise UserError("--separator is empty: give the character between two labels, such as --separator=';'")
        return separator, f"labels separated by {separator!r} (--separator)"
    cells = list(cells)
    for separator in ";|,":
        if any(separator in cell for _, cell in cells):
            return separator, f"labels separated by {separator!r} (found in the cells; --separator changes it)"
    spaced = [(where, cell.strip()) for where, cell in cells if " " in cell.strip()]
    if not spaced:
        return None, "each cell is one label"
    known = set(classes or ())
    whole = sum(cell in known for _, cell in spaced)
    words = sum(known.issuperset(cell.split()) for _, cell in spaced)
    if words and not whole:
        return " ", "labels separated by spaces (the class list shows it; --separator changes it)"
    if whole and not words:
        return None, "each cell is one label (the class list shows it)"
    where, cell = spaced[0]
    raise UserError(
        f"{where}: the labels {cell[:60]!r} hold spaces: add --separator=' ' if a space separates labels, "
        "or --separator=';' if each cell is one label"
    )


def split_cell(cell: str, separator: str | None) -> list[str]:
    """Names in a cell, [] for an empty cell; Mistake on an empty name between separators."""
    cell = cell.strip()
    if not cell:
        return []
    if separator is None:
        return [cell]
    if separator == " ":
        return cell.split()
    names = [name.strip() for name in cell.split(separator)]
    if "" in names:
        raise Mistake(f"empty label name in {cell!r}: remove the extra {separator!r}")
    return names


class Encoder:
    """Names and one-hot cells to int8 rows, for one list of class names."""

    def __init__(self, class_names: Sequence[str], values: Mapping[str, int], origin: str):
        self.class_names = list(class_names)
        self._index = {name: i for i, name in enumerate(class_names)}
        self._values = values
        self._origin = origin

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - lives as long as one reading of a table
    def index(self, name: str) -> int:
        """Index of a class name; Mistake with the nearest known name when there is none."""
        if name not in self._index:
            hint = did_you_mean(name, self.class_names)
            raise Mistake(f"unknown label {name!r}{hint}: correct it, or add it to {self._origin}")
        return self._index[name]

    def from_names(self, names: Iterable[str]) -> np.ndarray:
        """int8 [C]: 1 for the names given, 0 for the rest."""
        labels = np.zeros(len(self.class_names), np.int8)
        labels[[self.index(name) for name in names]] = 1
        return labels

    def from_values(self, pairs: Iterable[tuple[str, object]]) -> np.ndarray:
        """int8 [C] from (class name, cell) pairs; classes not named are 0, absent."""
        labels = np.zeros(len(self.class_names), np.int8)
        for name, cell in pairs:
            value = parse_value(cell, self._values)
            if value is None:
                expected = ", ".join(key for key in self._values if key not in _TRUTH)
                raise Mistake(f"{name!r} holds {str(cell)!r}: expected one of {expected}")
            labels[self.index(name)] = value
        return labels

    def box(self, entry, where: tuple[str, int]) -> Box:
        """A checked Box from `{"label": name, "bbox": [xmin, ymin, xmax, ymax], "difficult": bool}`."""
        if not isinstance(entry, Mapping) or not {"label", "bbox"} <= set(entry):
            raise Mistake('a box must be {"label": ..., "bbox": [xmin, ymin, xmax, ymax]}')
        try:
            # A text of four digits is iterable, too.
            corners = tuple(float(value) for value in entry["bbox"]) if isinstance(entry["bbox"], list) else ()
        except (TypeError, ValueError, OverflowError):
            corners = ()
        if len(corners) != 4 or not np.isfinite(corners).all():
            raise Mistake(f"the box {entry['bbox']} is not four numbers xmin, ymin, xmax, ymax in pixels")
        if not (corners[0] < corners[2] and corners[1] < corners[3]):
            raise Mistake(f"the box {list(corners)} has xmin >= xmax or ymin >= ymax")
        difficult = str(entry.get("difficult") or "false").strip().lower()
        if difficult not in ("true", "false", "1", "0"):
            raise Mistake(f"difficult is {entry['difficult']!r}: expected 1 or 0")
        return Box(self.index(str(entry["label"]).strip()), corners, difficult in ("true", "1"), where)
