"""Labels corrected by a reader of `review.csv`: read, checked against the data set, and written as a new one.

The file has a row for each label: `image`, `class`, `given` (what the data set has) and `corrected`, which the reader
fills in with 1, 0 or -1, or leaves empty; other columns are ignored.
"""

import csv
import dataclasses
import io
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxmlic import storage
from jaxmlic.data import named_splits
from jaxmlic.data.datasets import Dataset
from jaxmlic.data.prepare import writer
from jaxmlic.data.prepare.tables.annotations import parse_label_values, parse_value, read_text
from jaxmlic.data.prepare.tables.sheets import FILE_COLUMNS, Problem
from jaxmlic.errors import UserError, did_you_mean

COLUMNS = ("image", "class", "given", "corrected")
REVIEW_FOLDS = "review"  # named splits of a review's folds: they belong to the labels as they were


@dataclasses.dataclass(frozen=True, eq=False)
class Corrections:
    """What a file changes.

    Attributes:
      labels: {stored split: int8 [N, C]}, corrected.
      changed: {(label given, corrected): how many}.
      confirmed: rows whose correction is the label given.
      images: how many images have a changed label.
    """

    labels: dict[str, np.ndarray]
    changed: dict[tuple[int, int], int]
    confirmed: int
    images: int


def read(path: str, dataset: Dataset) -> Corrections:
    """The corrections of a file.

    Raises:
      UserError: a column is missing; a row names no image or class of the data set, or one that two splits have; a
        value is none of 1, 0, -1; `given` is not what the data set has; a label is corrected in two ways; nothing is.
    """
    labels = {split: dataset.labels(split) for split in dataset.splits}
    before = {split: values.copy() for split, values in labels.items()}
    places: dict[str, list[tuple[str, int]]] = {}
    for split in dataset.splits:
        for row, image in enumerate(dataset.ids(split).tolist()):
            places.setdefault(image, []).append((split, row))
    columns = {name: c for c, name in enumerate(dataset.class_names)}
    values = parse_label_values(None)
    first: dict[tuple, tuple[int, int]] = {}  # of each label: value and line
    for line, cells in _rows(path):
        text = cells["corrected"].strip()
        if not text:
            continue

        def wrong(why: str, line: int = line) -> UserError:
            return UserError(str(Problem(str(path), line, why)))

        corrected, given = parse_value(text, values), parse_value(cells["given"], values)
        image, name = cells["image"], cells["class"]
        if corrected is None:
            raise wrong(f"corrected is {text!r}: write 1 (present), 0 (absent) or -1 (unknown), or nothing")
        if image not in places:
            raise wrong(f"no image {image!r} in data set {dataset.name!r}: give the data set that was reviewed")
        if len(places[image]) > 1:
            both = " and ".join(split for split, _ in places[image])
            raise wrong(f"image {image!r} is in {both} of {dataset.name!r}: prepare it with different names first")
        if name not in columns:
            hint = did_you_mean(name, columns)
            raise wrong(f"no class {name!r} in data set {dataset.name!r}{hint}: leave the column class as it was")
        (split, row), column = places[image][0], columns[name]
        stored = int(before[split][row, column])
        if given != stored:
            raise wrong(
                f"given is {cells['given']!r}, but {dataset.name!r} has {stored} for {name!r} of {image!r}: the review "
                "is of other labels; review this data set again"
            )
        known, where = first.setdefault((split, row, column), (corrected, line))
        if known != corrected:
            raise wrong(f"{name!r} of {image!r} is {corrected} here and {known} on line {where}: remove one")
        labels[split][row, column] = corrected
    if not first:
        raise UserError(f"{path}: nothing is corrected: write 1, 0 or -1 into the column corrected")
    pairs = [(int(before[split][row, c]), value) for (split, row, c), (value, _) in first.items()]
    changed = {pair: pairs.count(pair) for pair in sorted(set(pairs)) if pair[0] != pair[1]}
    images = sum(int((labels[split] != before[split]).any(axis=1).sum()) for split in labels)
    return Corrections(labels, changed, len(pairs) - sum(changed.values()), images)


def count(path: Path) -> int:
    """How many rows of a file are corrected; 0 where there is none."""
    return sum(bool(cells["corrected"].strip()) for _, cells in _rows(path)) if path.is_file() else 0


def _rows(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, the cells of COLUMNS) of every row that is not blank; UserError where the file is not such a table."""
    reader = csv.reader(io.StringIO(read_text(storage.to_path(path)), newline=""), strict=True)
    line, header = 1, None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}:{line}: not valid CSV ({error}): check the quotes") from None
        if cells is None and header is None:
            raise UserError(f"{path}: the file is empty: jaxmlic data review writes one")
        if cells is None:
            return
        if header is None:
            header = [cell.strip() for cell in cells]
            missing = next((name for name in COLUMNS if name not in header), None)
            if missing:
                raise UserError(
                    f"{path}:1: no column {missing!r} in the first line: keep the header, and save with commas between "
                    "the columns"
                )
        elif any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                raise UserError(f"{path}:{line}: {len(cells)} columns where the first line has {len(header)}: mend it")
            found = dict(zip(header, cells, strict=True))
            yield line, {name: found[name] for name in COLUMNS}
        line = reader.line_num + 1


def write_table(path: str, dataset: Dataset, labels: Mapping[str, np.ndarray]) -> str:
    """Writes all images as a table that `jaxmlic data prepare` reads; returns the options that belong to it.

    UserError for a class named like a column of the table, and where the file cannot be written.
    """
    header = ["image", "split", *dataset.class_names]
    taken = next((name for name in dataset.class_names if name.lower() in (*FILE_COLUMNS[:2], "split")), None)
    if taken:
        raise UserError(f"--out={path}: a class is named {taken!r}, like a column of the table: use --as=NAME instead")
    with storage.replacing(path, "w", newline="", remedy="give another file with --out=FILE.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        for split, values in labels.items():
            for image, row in zip(dataset.ids(split).tolist(), values.tolist(), strict=True):
                table.writerow([image, split, *row])
    return f"--source={path} --file-column=image --split-column=split --label-values=1,0,-1 --images=FOLDER"


def write_dataset(name: str, dataset: Dataset, corrections: Corrections, path: str, overwrite: bool = False) -> Path:
    """A prepared data set beside this one, with its images, boxes and named splits and the corrected labels.

    Boxes of a class that was corrected to absent are left out. Returns its folder.
    """
    if name == dataset.name:
        raise UserError(f"--as={name}: the data set that is corrected stays as it is; give the new one another name")
    data_dir = dataset.home.parent.parent
    if storage.is_bucket(data_dir):
        raise UserError(f"{dataset.home}: --as writes to this machine; use --out=FILE.csv for a data set in a bucket")

    def stream(split: str) -> Iterator[dict]:
        before = dataset.labels(split)
        for record, old, new in zip(
            dataset.source(split, boxes=dataset.has_boxes), before, corrections.labels[split], strict=True
        ):
            example = record | {"labels": new}
            if dataset.has_boxes:
                gone = np.flatnonzero((new == 0) & (old != 0))
                example["boxes"] = [box for box in _boxes(record["boxes"]) if box["label"] not in gone]
            yield example

    info = {"source": f"{dataset.name}, corrected by {path}", "label_values": "1,0,-1"}
    folder = writer.write(
        name,
        data_dir,
        dataset.class_names,
        {split: stream(split) for split in dataset.splits},
        info,
        dataset.has_boxes,
        overwrite=overwrite,
    )
    for file in (dataset.path / named_splits.FOLDER).glob("[!.]*.npz"):  # rows and ids are the same
        if not file.stem.startswith(REVIEW_FOLDS):
            (folder / named_splits.FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(file, folder / named_splits.FOLDER / file.name)
    return folder


def _boxes(boxes: Mapping[str, np.ndarray]) -> Iterator[dict]:
    for corners, label, difficult in zip(boxes["bbox"].tolist(), boxes["label"], boxes["difficult"], strict=True):
        yield {"bbox": corners, "label": int(label), "difficult": bool(difficult)}
