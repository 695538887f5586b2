"""PASCAL VOC 2007 and 2012 as published: VOCdevkit folders or the official tar files (Everingham et al., 2010).

Labels come from the annotation XML: a class is present when an object of it is not *difficult*, unknown (-1) when all
its objects are, absent otherwise. All boxes are kept with their flags.
"""

import os
import re
from xml.etree import ElementTree

import numpy as np

from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.data.prepare.tables.annotations import Box, Mistake
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.prepare.tables.table import Row, Table
from jaxmlic.errors import UserError, did_you_mean

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# The list files that make each stored split. VOC 2007's trainval is stored as `train`, because that is what everybody
# trains on; the labels of VOC 2012's test were never published.
SPLITS = {
    "2007": {"train": ("trainval",), "test": ("test",)},
    "2012": {"train": ("train",), "val": ("val",)},
}
COUNTS = {"2007": {"train": 5011, "test": 4952}, "2012": {"train": 5717, "val": 5823}}


def read(files: Files, year: str) -> Table:
    """Everything but the pixels of VOC 2007 or 2012.

    Args:
      files: VOCdevkit, its VOC2007 folder, or the official tar files.
      year: "2007" or "2012".

    Returns:
      a Table with boxes. `main/train` and `main/val` are VOC's halves of trainval (2007), `main/trainval` both (2012).

    Raises:
      UserError: another year's files, or an image list that is missing or names images that are not there.
    """
    root = _root(files, year)
    first = next(name for name, _ in _annotations(files) if name.startswith(root))
    folder = re.search(rb"<folder>\s*(VOC20\d\d)\s*</folder>", files.read(first)[:2000])
    if folder and folder[1].decode() != f"VOC{year}":  # a renamed folder
        raise _wrong_year(files, folder[1].decode(), year)
    problems, notes = [], []
    splits = {}
    for split, lists in SPLITS[year].items():
        ids = [image for name in lists for image in _image_list(files, root, name)]
        splits[split] = _rows(files, root, ids, problems)
        if len(ids) != COUNTS[year][split]:
            notes.append(f"{split}: {len(ids):,} images listed, the official VOC {year} has {COUNTS[year][split]:,}")
    if year == "2007":
        named = {"main": _main(files, root, splits["train"])}
        notes.append("train is VOC's trainval" + ("; main/train and main/val are its halves" if named["main"] else ""))
    else:
        named = {"main": {"trainval": [row.id for rows in splits.values() for row in rows]}}
    return Table(
        class_names=list(CLASS_NAMES),
        splits=splits,
        problems=problems,
        notes=notes,
        has_boxes=True,
        named_splits={name: parts for name, parts in named.items() if parts},
    )


def _root(files: Files, year: str) -> str:
    """The prefix of the year's folder, with its slash; UserError when it is another year's."""
    folders = {name[: -len("Annotations/") - len(tail)] for name, tail in _annotations(files)}
    if not folders:
        raise UserError(
            f"{files}: no folder Annotations with .xml files: give --source the folder VOCdevkit, or the official tar "
            f"files of VOC {year}"
        )
    named = [folder for folder in folders if re.search(rf"(^|/)VOC{year}/$", folder)]
    if len(named) == 1:
        return named[0]
    seen = " ".join([*folders, *(os.path.basename(os.path.realpath(source)) for source in files.sources)])
    other = sorted(set(re.findall(r"VOC20\d\d", seen)) - {f"VOC{year}"})
    if other:
        raise _wrong_year(files, other[0], year)
    if len(folders) > 1:
        raise UserError(f"{files}: Annotations is there in {' and '.join(sorted(folders))}: give --source one of them")
    return folders.pop()


def _wrong_year(files: Files, found: str, year: str) -> UserError:
    return UserError(f"{files}: this is {found}, not VOC{year}: give VOC {year}'s own folder or tar files")


def _annotations(files: Files):
    for name in files:
        folder, _, tail = name.rpartition("/")
        if tail.endswith(".xml") and (folder == "Annotations" or folder.endswith("/Annotations")):
            yield name, tail


def _image_list(files: Files, root: str, name: str) -> list[str]:
    """Ids of an image list; a list of a class (id and 1, 0 or -1) is not one of these."""
    path = f"{root}ImageSets/Main/{name}.txt"
    if path not in files:
        raise UserError(
            f"{files}: no {path}: the images of this split are not there; give all the official files (VOC 2007: "
            "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar)"
        )
    ids = {}
    for line, text in enumerate(files.text(path).splitlines(), 1):
        image = text.strip()
        if not image:
            continue
        if not re.fullmatch(r"[\w-]+", image):
            raise UserError(f"{path}:{line}: {image[:60]!r} is not the id of one image: is it the owner's file?")
        if image in ids:
            raise UserError(f"{path}:{line}: {image!r} is already on line {ids[image]}: remove one")
        ids[image] = line
    if not ids:
        raise UserError(f"{path}: no image in it")
    return list(ids)


def _rows(files: Files, root: str, ids: list[str], problems: list[Problem]) -> list[Row]:
    rows = []
    for image in ids:
        annotation, picture = f"{root}Annotations/{image}.xml", f"{root}JPEGImages/{image}.jpg"
        missing = next((name for name in (annotation, picture) if name not in files), None)
        if missing:
            problems.append(Problem(missing, 0, "is missing, but the image list names it"))
            continue
        try:
            labels, boxes = parse(files.read(annotation), annotation)
        except Mistake as mistake:
            problems.append(Problem(annotation, 0, str(mistake)))
            continue
        rows.append(Row(image, files[picture], labels, boxes, (annotation, 0)))
    return rows


def parse(xml: bytes, name: str) -> tuple[np.ndarray, list[Box]]:
    """Labels int8 [20] and boxes of one annotation file; Mistake when it is not one."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise Mistake(f"not XML ({error})") from None
    except (ValueError, LookupError) as error:  # an unknown encoding
        raise Mistake(f"cannot be read ({error})") from None
    if root.tag != "annotation":
        raise Mistake(f"the root is <{root.tag[:40]}>, not <annotation>")
    labels = np.zeros(len(CLASS_NAMES), np.int8)
    boxes = []
    # Direct children only: a person's <part> (head, hand, foot) has a name and a box as well.
    for thing in root.findall("object"):
        label = (thing.findtext("name") or "").strip()
        if label not in CLASS_NAMES:
            raise Mistake(f"unknown class {label[:40]!r}{did_you_mean(label, CLASS_NAMES)}")
        index = CLASS_NAMES.index(label)
        flag = (thing.findtext("difficult") or "0").strip()
        if flag not in ("0", "1"):
            raise Mistake(f"<difficult> of {label!r} is {flag[:40]!r}, not 0 or 1")
        difficult = flag == "1"
        if not difficult:
            labels[index] = 1
        elif labels[index] == 0:
            labels[index] = -1
        boxes.append(_box(thing, index, difficult, name))
    return labels, boxes


def _box(thing: ElementTree.Element, label: int, difficult: bool, name: str) -> Box:
    try:
        corners = tuple(float(thing.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        corners = ()
    if len(corners) != 4 or not np.isfinite(corners).all():
        raise Mistake(f"an object of {CLASS_NAMES[label]!r} has no <bndbox> of four numbers")
    xmin, ymin, xmax, ymax = corners
    if not (xmin <= xmax and ymin <= ymax):
        raise Mistake(f"the box {list(corners)} has xmin > xmax or ymin > ymax")
    # VOC counts pixels from 1 and both ends belong to the box; ours are edges, counted from 0.
    return Box(label, (xmin - 1, ymin - 1, xmax, ymax), difficult, (name, 0))


def _main(files: Files, root: str, rows: list[Row]) -> dict[str, list[str]]:
    """The official halves of trainval, as far as their lists are there."""
    known = {row.id for row in rows}
    paths = {half: f"{root}ImageSets/Main/{half}.txt" for half in ("train", "val")}
    if not all(path in files for path in paths.values()):
        return {}
    return {half: [i for i in _image_list(files, root, half) if i in known] for half in paths}
