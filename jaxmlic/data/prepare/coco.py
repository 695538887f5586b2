"""COCO 2014 and 2017 as published: `instances_*.json` and the image folders or zips (Lin et al., 2014).

An image has a label when it has at least one object of the category, crowds included: that gives the 82,081 and 40,137
images with labels of ML-GCN and ASL. Images without objects are stored with empty label sets; `config.data.drop_empty`
leaves them out.
"""

import contextlib
import mmap
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np

from jaxmlic.data.prepare.sources.files import Files, LocalFile
from jaxmlic.data.prepare.tables.annotations import Box
from jaxmlic.data.prepare.tables.sheets import IMAGE_SUFFIXES, Problem
from jaxmlic.data.prepare.tables.table import Row, Table
from jaxmlic.errors import UserError

SPLITS = ("train", "val")  # the owners' names; the labels of COCO's own test were never published
COUNTS = {"2014": {"train": 82_783, "val": 40_504}, "2017": {"train": 118_287, "val": 5_000}}


# What is needed of the file; the decoder skips all else (polygons are nine tenths of the bytes) without making objects.
class Image(msgspec.Struct):
    """An entry of "images"."""

    id: int
    file_name: str


class Annotation(msgspec.Struct, gc=False):
    """An entry of "annotations": one object, or a crowd of them."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height in pixels
    iscrowd: int = 0


class Category(msgspec.Struct):
    """An entry of "categories"."""

    id: int
    name: str


class Instances(msgspec.Struct):
    """An `instances_*.json`."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


def read(files: Files, year: str, class_order: str = "category_id") -> Table:
    """Everything but the pixels of COCO 2014 or 2017.

    Args:
      files: the annotations and images, as folders or zips.
      year: "2014" or "2017".
      class_order: "category_id" (person, bicycle, car ...) or "alphabetical", the order of ML-GCN's files.

    Returns:
      a Table with boxes; `difficult` marks crowds. The images are in the file's order.

    Raises:
      UserError: no `instances_*.json` of that year, one that is not valid, or two that differ in their categories.
    """
    names = {split: f"instances_{split}{year}.json" for split in SPLITS}
    if not any(files.ending(name) for name in names.values()):
        others = sorted(name.rpartition("/")[2] for name in files if name.endswith(".json"))
        found = f" (it has {', '.join(others[:3])})" if others else ""
        raise UserError(
            f"{files}: no {' or '.join(names.values())} there{found}: give the owner's annotations (folder or "
            f"annotations_trainval{year}.zip) and images"
        )
    # One look-up table for all splits: base name -> where it lies.
    images = defaultdict(list)
    for name in files:
        if name.lower().endswith(IMAGE_SUFFIXES):
            images[name.rpartition("/")[2]].append(name)
    splits, problems, notes, categories = {}, [], [], None
    for split, tail in names.items():
        if not files.ending(tail):
            notes.append(f"no {tail}: the split {split!r} is not there")
            continue
        name = files.one(tail, "the labels")
        found = decode(files, name)
        order = _categories(found, name)
        if categories is not None and order != categories:
            raise UserError(f"{name}: its categories differ from those of the other file: they are not of one data set")
        categories = order
        reading = _rows(files, found, name, f"{split}{year}", images, _positions(order, class_order))
        splits[split] = reading.rows
        problems += reading.problems
        if reading.num_flat:
            notes.append(f"{tail}: {reading.num_flat:,} boxes without area left out, their labels kept")
        if len(found.images) != COUNTS[year][split]:
            notes.append(f"{split}: {len(found.images):,} images, the official one has {COUNTS[year][split]:,}")
    notes.append(f"classes in the order of {'category ids' if class_order == 'category_id' else 'the alphabet'}")
    return Table(
        class_names=sorted(categories.values()) if class_order == "alphabetical" else list(categories.values()),
        splits=splits,
        problems=problems,
        notes=notes,
        has_boxes=True,
    )


def decode(files: Files, name: str) -> Instances:
    """The objects of an `instances_*.json`, with little more memory than they need themselves.

    A file on disk is mapped, not read (the one of 2017 has 448 MB); one inside an archive is decompressed into memory.
    """
    with _buffer(files, name) as data:
        try:
            return msgspec.json.decode(data, type=Instances)
        except msgspec.ValidationError as error:  # "Expected `int`, got `str` - at `$.images[3].id`"
            raise UserError(f"{name}: {error}: is it the owner's file?") from None
        except RecursionError:
            raise UserError(f"{name}: its lists are nested too deeply: is it the owner's file?") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            line = bytes(data[: _place(error, data)]).count(b"\n") + 1
            cut = " (the file ends too early)" if "truncated" in str(error) else ""
            raise UserError(f"{name}:{line}: not valid JSON{cut}: {error}: download it again") from None


def _place(error: Exception, data: bytes | mmap.mmap) -> int:
    """The byte at which decoding failed, the end if that is not known."""
    if isinstance(error, UnicodeDecodeError):  # it counts from the start of one text
        try:
            bytes(data).decode()
        except UnicodeDecodeError as whole:
            return whole.start
    found = re.search(r"\(byte ([0-9]+)\)$", str(error))  # "JSON is malformed: invalid character (byte 17)"
    return int(found[1]) if found else len(data)


@contextlib.contextmanager
def _buffer(files: Files, name: str) -> Iterator[bytes | mmap.mmap]:
    file = files[name]
    if not isinstance(file, LocalFile):
        yield files.read(name)
        return
    try:
        with open(file.path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read ({error.strerror})") from None
    except ValueError:  # an empty file cannot be mapped
        raise UserError(f"{file.path}: the file is empty: download it again") from None


def _categories(found: Instances, name: str) -> dict[int, str]:
    """{category id: name} by id; UserError when two share one."""
    order, names = {}, set()
    for category in sorted(found.categories, key=lambda category: category.id):
        if category.id in order or category.name in names:
            raise UserError(f"{name}: the category {category.id} ({category.name!r}) is there twice: correct the file")
        order[category.id] = category.name
        names.add(category.name)
    if not order:
        raise UserError(f"{name}: it has no categories: captions and keypoints are other files, give instances_*.json")
    return order


def _positions(order: dict[int, str], class_order: str) -> dict[int, int]:
    """{category id: index of its class}."""
    names = sorted(order.values()) if class_order == "alphabetical" else list(order.values())
    places = {name: place for place, name in enumerate(names)}
    return {category: places[name] for category, name in order.items()}


@dataclass
class _Reading:
    """One split: its good rows, the problems of the others, and the objects that have no area."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    num_flat: int = 0


def _rows(
    files: Files, found: Instances, name: str, folder: str, images: dict[str, list[str]], positions: dict[int, int]
) -> _Reading:
    """The rows of one `instances_*.json`.

    Args:
      files: where the images are.
      found: the file's content.
      name: the file's name.
      folder: the split's own folder of images, such as "train2014".
      images: {base name: names in `files`}.
      positions: {category id: index of its class}.
    """
    base = name.rpartition("/")[2]
    where = (base, 0)
    objects = defaultdict(list)
    for annotation in found.annotations:
        objects[annotation.image_id].append(annotation)
    reading, seen_ids, seen_files = _Reading(), set(), set()
    for image in found.images:
        of_image = objects.pop(image.id, [])
        unknown = next((entry.category_id for entry in of_image if entry.category_id not in positions), None)
        if image.id in seen_ids or image.file_name in seen_files:
            reading.problems.append(Problem(*where, f"image {image.id} ({image.file_name}) is there twice"))
            continue
        seen_ids.add(image.id)
        seen_files.add(image.file_name)
        if unknown is None:
            path, why = _find(image.file_name, folder, images)
        else:
            path, why = None, f"image {image.id} has an object of the unknown category {unknown}"
        if path is None:
            reading.problems.append(Problem(*where, why))
            continue
        labels, boxes = _labels_and_boxes(of_image, positions, where)
        reading.num_flat += len(of_image) - len(boxes)
        reading.rows.append(Row(image.file_name, files[path], labels, boxes, where))
    for image, of_image in objects.items():
        why = f"{len(of_image)} objects of image {image}, which is not among the images"
        reading.problems.append(Problem(*where, why))
    return reading


def _labels_and_boxes(
    objects: list[Annotation], positions: dict[int, int], where: tuple[str, int]
) -> tuple[np.ndarray, list[Box]]:
    """Labels int8 [C] of an image's objects, and the boxes of those that have an area (two of train2017 have none)."""
    labels = np.zeros(len(positions), np.int8)
    boxes = []
    for entry in objects:
        label = positions[entry.category_id]
        labels[label] = 1
        x, y, width, height = entry.bbox
        if width > 0 and height > 0:
            boxes.append(Box(label, (x, y, x + width, y + height), bool(entry.iscrowd), where))
    return labels, boxes


def _find(file_name: str, folder: str, images: dict[str, list[str]]) -> tuple[str | None, str]:
    """Where an image lies: by its base name; of several, the one in the split's folder."""
    places = images.get(file_name.replace("\\", "/").rpartition("/")[2], [])
    if len(places) > 1:
        inside = [place for place in places if f"/{place}".rpartition("/")[0].endswith("/" + folder)]
        if len(inside) != 1:
            return None, f"{file_name}: two images have this name: {places[0]} and {places[1]}"
        places = inside
    return (places[0], "") if places else (None, f"{file_name}: no image of this name there")
