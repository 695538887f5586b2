"""NUS-WIDE from the text files that Lms NUS publishes (Chua et al., CIVR 2009) and the images that still exist.

`Groundtruth.zip`, `ImageList.zip`, `NUS_WID_Tags.zip` and `ConceptsList.zip`, or the folders that they hold; images as
`Flickr/<folder>/<name>.jpg` or flat. The images are Flickr's and many were deleted: those are left out and counted.

The owner's files hold one slip: line 78,372 of `Labels_lake_Train.txt` reads -1130179. Such a label is taken from
`AllLabels` where that is there, and is unknown (-1) otherwise.
"""

import posixpath
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.data.prepare.tables.sheets import IMAGE_SUFFIXES, Problem
from jaxmlic.data.prepare.tables.table import Row, Table
from jaxmlic.errors import UserError, unknown

LABEL_SETS = ("concepts81", "tags1k")
CONCEPTS, TAGS = 81, 1000
IMAGES = {"train": 161_789, "test": 107_859}
LABELLED = {"train": 125_449, "test": 83_898}
"""Images with at least one of the 81 concepts; 209,347 together."""

_LISTS = {"train": "TrainImagelist.txt", "test": "TestImagelist.txt"}
_ENDINGS = {"train": "_Train", "test": "_Test"}
_TAG_FILES = {"train": "Train_Tags1k.dat", "test": "Test_Tags1k.dat"}
_BLOCK = 1 << 16  # small enough for the processor's cache
_AGAIN = "download the archive again"


def read(files: Files, label_set: str = "concepts81") -> Table:
    """Read the lists and labels and find every image.

    Args:
      files: the owner's archives or folders, and the images.
      label_set: "concepts81" (81 concepts, checked by people) or "tags1k" (1000 tags of users).

    Returns:
      a Table with the official splits `train` and `test` in the order of their lists; ids are the paths of the lists
      with slashes. `named_splits` has "labelled", the images with a concept, unless there is no ground truth (tags
      only). `listed` has "official" and "labelled" with the images that are missing.

    Raises:
      UserError: a file is missing, has another number of lines than its image list, or holds anything but 0 and 1;
        AllLabels and TrainTestLabels disagree; not one image is there.
    """
    if label_set not in LABEL_SETS:
        raise unknown("label set of NUS-WIDE", label_set, LABEL_SETS)
    notes = []
    lists = {split: _image_list(files, name) for split, name in _LISTS.items()}
    for split, ids in lists.items():
        if len(ids) != IMAGES[split]:
            notes.append(f"{split}: {len(ids):,} images in the list, {IMAGES[split]:,} in the official one")
    concepts = None
    if label_set == "concepts81" or files.ending("Concepts81.txt"):
        names, concepts = _read_concepts(files, lists, notes)
        labels = concepts
    if label_set == "tags1k":
        names, labels = _read_tags(files, lists, notes)
    table = Table(names, {}, [], notes, has_boxes=False)
    _add_rows(table, lists, labels, files)
    table.listed["official"] = lists
    if concepts is not None:
        _add_labelled(table, lists, concepts)
    return table


def _lines(files: Files, tail: str, what: str) -> tuple[str, list[str]]:
    """The name of the file that ends in `tail` and its lines, stripped; UserError on none or an empty one."""
    name = files.one(tail, what)
    lines = [line.strip() for line in files.text(name).rstrip().split("\n")]
    if "" in lines:
        raise UserError(f"{name}:{lines.index('') + 1}: empty line: {_AGAIN}")
    return name, lines


def _image_list(files: Files, tail: str) -> list[str]:
    return [line.replace("\\", "/") for line in _lines(files, tail, "list of images")[1]]


def _class_list(files: Files, tail: str, count: int, what: str) -> list[str]:
    name, lines = _lines(files, tail, f"names of the {count:,} {what}")
    if len(lines) != count:
        raise UserError(f"{name}: {len(lines):,} {what}, its owner's file has {count:,}: {_AGAIN}")
    repeated = next((line for line, count in Counter(lines).items() if count > 1), None)
    if repeated:
        raise UserError(f"{name}: {repeated!r} is there twice: {_AGAIN}")
    return lines


def _places(files: Files, lists: dict[str, list[str]]) -> tuple[dict[str, np.ndarray], int]:
    """For every line of the split lists its row in Imagelist.txt, that is in the files named All...; its length."""
    everything = _image_list(files, "Imagelist.txt")
    row = {image: i for i, image in reversed(list(enumerate(everything)))}  # a repeated line counts where it is first
    for split, ids in lists.items():
        lost = next((line for line, image in enumerate(ids, 1) if image not in row), None)
        if lost:
            raise UserError(f"{_LISTS[split]}:{lost}: {ids[lost - 1]} is not in Imagelist.txt: {_AGAIN}")
    return {split: np.array([row[image] for image in ids]) for split, ids in lists.items()}, len(everything)


def _read_concepts(files: Files, lists, notes: list[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The concepts, and for each split int8 [images, concepts]."""
    concepts = _class_list(files, "Concepts81.txt", CONCEPTS, "concepts")
    divided = any(files.ending(f"Labels_{concept}_Train.txt") for concept in concepts)
    everywhere = any(files.ending(f"Labels_{concept}.txt") for concept in concepts)
    if not divided and not everywhere:
        raise UserError(f"{files}: no Labels_{concepts[0]}_Train.txt or Labels_{concepts[0]}.txt: add Groundtruth.zip")
    places = None
    if everywhere and (not divided or files.ending("Imagelist.txt")):
        places, total = _places(files, lists)
    labels = {split: np.empty((len(ids), len(concepts)), np.int8) for split, ids in lists.items()}
    for c, concept in enumerate(concepts):
        if places:
            whole, _ = _column(files, f"Labels_{concept}.txt", total, notes)
        for split, ids in lists.items():
            if not divided:
                labels[split][:, c] = whole[places[split]]
                continue
            column, name = _column(files, f"Labels_{concept}{_ENDINGS[split]}.txt", len(ids), notes)
            if places:
                expected = whole[places[split]]
                other = np.flatnonzero((column != expected) & (column >= 0) & (expected >= 0))
                if len(other):
                    raise UserError(
                        f"{name}:{other[0] + 1}: {column[other[0]]} for {ids[other[0]]}, but Labels_{concept}.txt says "
                        f"{expected[other[0]]}: give files of one release, or only one of AllLabels and TrainTestLabels"
                    )
                column = np.where(column < 0, expected, column)
            labels[split][:, c] = column
    source = "TrainTestLabels" if divided else "AllLabels"
    notes.append(f"labels from {source}" + " (AllLabels agrees)" * (divided and places is not None))
    return concepts, labels


def _column(files: Files, tail: str, rows: int, notes: list[str]) -> tuple[np.ndarray, str]:
    """One concept's labels, int8 [rows]: 0, 1, and -1 for a line that is neither; and the file's name.

    Raises:
      UserError: another number of lines, or more than one that is neither 0 nor 1 (the owner's slip is one).
    """
    name = files.one(tail, "labels of one concept")
    lines = files.read(name).split()
    if len(lines) != rows:
        raise UserError(f"{name}: {len(lines):,} labels for {rows:,} images of the list: {_AGAIN}")
    odd = []
    joined = b"".join(lines)
    if len(joined) != rows or joined.strip(b"01"):
        odd = [i for i, line in enumerate(lines) if line not in (b"0", b"1")]
        if len(odd) > 1:
            raise UserError(
                f"{name}:{odd[0] + 1}: {lines[odd[0]][:20].decode(errors='replace')!r} is neither 0 nor 1 (nor is line "
                f"{odd[1] + 1:,}): {_AGAIN}"
            )
        for i in odd:
            notes.append(f"{name}:{i + 1}: {lines[i][:20].decode(errors='replace')!r} is neither 0 nor 1: not used")
            lines[i] = b"0"
        joined = b"".join(lines)
    column = (np.frombuffer(joined, np.uint8) - 48).astype(np.int8)
    column[odd] = -1
    return column, name


def _read_tags(files: Files, lists, notes: list[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The tags, and for each split int8 [images, tags]."""
    tags = _class_list(files, "TagList1k.txt", TAGS, "tags")
    if all(files.ending(tail) for tail in _TAG_FILES.values()):
        notes.append(f"tags from {' and '.join(_TAG_FILES.values())}")
        return tags, {split: _matrix(files, _TAG_FILES[split], len(ids), len(tags)) for split, ids in lists.items()}
    places, total = _places(files, lists)
    everything = _matrix(files, "AllTags1k.txt", total, len(tags))
    notes.append("tags from AllTags1k.txt")
    return tags, {split: everything[places[split]] for split in lists}


def _matrix(files: Files, tail: str, rows: int, width: int) -> np.ndarray:
    """Int8 [rows, width] from lines of 0 and 1 with a tab or a space between; UserError with the line on all else."""
    name = files.one(tail, "tags of the images")
    data = files.read(name)
    out = np.empty((rows, width), np.int8)
    done = start = 0
    while start < len(data):
        stop = data.find(b"\n", start + _BLOCK) + 1 or len(data)
        block = np.frombuffer(data, np.uint8, stop - start, start)
        digit = (block & 0xFE) == 48
        newline = block == 10
        ends = np.flatnonzero(newline)
        if not newline[-1]:  # the last line of the file has no end
            ends = np.append(ends, len(block) - 1)
        starts = np.append(0, ends[:-1] + 1)
        wrong = np.add.reduceat(digit, starts, dtype=np.int32) != width
        foreign = ~(digit | newline | (block == 9) | (block == 32) | (block == 13))
        foreign[1:] |= digit[1:] & digit[:-1]
        wrong[np.searchsorted(ends, np.flatnonzero(foreign))] = True
        if wrong.any():
            line = done + int(np.argmax(wrong))
            raise UserError(f"{name}:{line + 1}: not {width:,} values 0 or 1 with tabs between: {_AGAIN}")
        if done + len(ends) <= rows:
            out[done : done + len(ends)] = (block[np.flatnonzero(digit)] & 1).reshape(
                -1, width
            )  # twice as fast as block[digit]
        done += len(ends)
        start = stop
    if done != rows:
        raise UserError(f"{name}: {done:,} lines for {rows:,} images of the list: {_AGAIN}")
    return out


def _add_rows(table: Table, lists: dict[str, list[str]], labels: dict[str, np.ndarray], files: Files) -> None:
    """Rows of the images that are there; the others to `left_out`, what is unclear to `problems`."""
    images = _Images(files, lists)
    seen: dict[str, tuple[str, int]] = {}
    for split, ids in lists.items():
        rows, repeated, missing = [], 0, 0
        for line, (image, values) in enumerate(zip(ids, labels[split], strict=True), 1):
            where = (_LISTS[split], line)
            first = seen.setdefault(image, where)
            if first[0] != where[0]:
                why = f"{image} is in {first[0]}:{first[1]} too: an image may be in one split"
                table.problems.append(Problem(*where, why))
            elif first != where and np.array_equal(values, labels[split][first[1] - 1]):
                repeated += 1
            elif first != where:
                table.problems.append(Problem(*where, f"{image} is on line {first[1]} too, with other labels"))
            elif len(found := images.find(image)) > 1:
                table.problems.append(Problem(*where, f"{image} may be {found[0]} or {found[1]}: remove one"))
            elif not found:
                missing += 1
                table.left_out.append(Problem(*where, f"{image}: no such image (many are no longer on Flickr)"))
            else:
                rows.append(Row(image, files[found[0]], values, [], where))
        table.splits[split] = rows
        if repeated:
            table.notes.append(f"{split}: {repeated:,} repeated lines of {_LISTS[split]} count once")
        if missing:
            table.notes.append(f"{split}: {missing:,} of {len(ids):,} images are not there any more")
    if not any(table.splits.values()) and table.left_out:
        raise UserError(
            f"{files}: not one of the images is there (such as {lists['train'][0]}): give their folder, which has "
            "Flickr/FOLDER/NAME.jpg or images/NAME.jpg, as another --source"
        )


class _Images:
    """Finds images by the last two parts of their path, else by their name alone."""

    def __init__(self, files: Files, lists: dict[str, list[str]]):
        self._by_tail: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES):
                parts = name.split("/")
                self._by_tail.setdefault("/".join(parts[-2:]), []).append(name)
                self._by_name.setdefault(parts[-1], []).append(name)
        every = {image for ids in lists.values() for image in ids}
        self._uses = Counter(posixpath.basename(image) for image in every)

    def find(self, image: str) -> Sequence[str]:
        """The names of the files that can be this image: one, or none, or several when it is unclear."""
        found = self._by_tail.get("/".join(image.split("/")[-2:]))
        if found:
            return found
        name = posixpath.basename(image)
        return self._by_name.get(name, ()) if self._uses[name] == 1 else ()


def _add_labelled(table: Table, lists: dict[str, list[str]], concepts: dict[str, np.ndarray]) -> None:
    """The named split "labelled": the images of each official split with at least one concept."""
    labelled = {s: [lists[s][i] for i in np.flatnonzero((concepts[s] == 1).any(1))] for s in lists}
    table.listed["labelled"] = labelled
    present = {split: {row.id for row in rows} for split, rows in table.splits.items()}
    table.named_splits["labelled"] = {
        split: [image for image in dict.fromkeys(labelled[split]) if image in present[split]] for split in lists
    }
    counts = [f"{len(labelled[split]):,} in {split} (official: {LABELLED[split]:,})" for split in lists]
    table.notes.append(f"images with a concept: {' and '.join(counts)}")
