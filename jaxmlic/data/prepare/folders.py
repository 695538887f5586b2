"""Class folders: `SPLIT/CLASS/image.jpg`, or `CLASS/image.jpg` alone; every image has the one label of its folder."""

import re
from collections import Counter

import numpy as np

from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.data.prepare.tables.sheets import IMAGE_SUFFIXES, SPLIT_NAMES, Problem
from jaxmlic.data.prepare.tables.table import Row, Table
from jaxmlic.errors import UserError

_CLUTTER = ("__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini")
Found = tuple[str, str, str]  # name, split, class
_LABEL_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".xml")


def is_class_folders(files: Files) -> bool:
    """Whether the files look like class folders: two classes or more, most images in one, and no file with labels.

    VOC, COCO and NUS-WIDE should be looked for first: their images lie in folders too.
    """
    names, _ = _visible(files)
    if any(name.lower().endswith(_LABEL_SUFFIXES) for name in names):
        return False
    images = [name for name in names if _is_image(name)]
    root, divided = _layout(images)
    classes = [_place(name, root, divided)[1] for name in images]
    found = set(classes) - {None}
    # train2014/ and val2014/ are splits of COCO, not classes.
    years = all(re.fullmatch(rf"({'|'.join(SPLIT_NAMES)})\d*", name.lower()) for name in found)
    return len(found) > 1 and not years and 2 * classes.count(None) < len(classes)


def read(files: Files) -> Table:
    """Every image below a class folder.

    A single folder around everything is stripped. Splits are the folders named train, trainval, training, val, valid,
    validation, test or testing, if any of them holds class folders; without them everything is `train`. Images may lie
    deeper than their class folder. Hidden files and the clutter of file managers are ignored and counted.

    Returns:
      a Table with classes sorted by name, int8 one-hot labels, and the path (without the stripped folder) as id. Images
      outside a class folder and other files inside one are problems; other files elsewhere are noted.

    Raises:
      UserError: no image lies in a class folder, or two folders give the same split.
    """
    names, hidden = _visible(files)
    root, divided = _layout([name for name in names if _is_image(name)])
    found, problems, other = _sort_out(names, root, divided)
    _refuse_split_twice(files, found, root, divided)
    if not found:
        raise UserError(f"{files}: no image there lies in a class folder, as CLASS/image.jpg or train/CLASS/image.jpg")
    classes = sorted({label for _, _, label in found})
    one_hot = dict(zip(classes, np.eye(len(classes), dtype=np.int8), strict=True))
    splits: dict[str, list[Row]] = {
        split: [] for split in ("train", "val", "test") if split in {s for _, s, _ in found}
    }
    for name, split, label in found:
        splits[split].append(Row(name[len(root) :], files[name], one_hot[label], [], (name, 0)))
    notes = [f"{len(classes)} classes: the names of the folders, sorted"]
    if not divided:
        notes.append("no folders train, val or test: every image is in the split 'train'")
    for split in splits:
        missing = sorted(set(classes) - {label for _, s, label in found if s == split})
        if missing:
            notes.append(f"{split}: no image of {_some(missing)}")
    if other:
        notes.append(f"{_some(other)}: not used")
    if hidden:
        notes.append(f"{hidden:,} hidden files ignored")
    return Table(classes, splits, problems, notes, has_boxes=False)


def _sort_out(names: list[str], root: str, divided: bool) -> tuple[list[Found], list[Problem], list[str]]:
    """(name, split, class) of the images in class folders, the problems of what lies wrong, and other files."""
    found, problems, other = [], [], []
    for name in names:
        split, label = _place(name, root, divided)
        if _is_image(name) and label is not None:
            found.append((name, split, label))
        elif _is_image(name):
            why = f"not in {'train/CLASS/, val/CLASS/ or test/CLASS/' if divided else 'a class folder'}: move it"
            problems.append(Problem(name, 0, why))
        elif label is not None:
            problems.append(Problem(name, 0, f"not an image by its name ({', '.join(IMAGE_SUFFIXES)})"))
        else:
            other.append(name)
    return found, problems, other


def _refuse_split_twice(files: Files, found: list[Found], root: str, divided: bool) -> None:
    """UserError when two folders, such as val and validation, give the same split."""
    folders: dict[str, str] = {}
    for name, split, _ in found if divided else ():
        folder = name[len(root) :].split("/")[0]
        if folders.setdefault(split, folder) != folder:
            raise UserError(f"{files}: {folders[split]} and {folder} both give the split {split!r}: rename one")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _visible(files: Files) -> tuple[list[str], int]:
    """The names without hidden files and clutter, and how many of these there are."""
    names = [n for n in files if not any(part.startswith(".") or part in _CLUTTER for part in n.split("/"))]
    return names, len(files.names) - len(names)


def _layout(images: list[str]) -> tuple[str, bool]:
    """The folder around everything ("" or with its slash), and whether there are split folders."""
    root = ""
    # Only a folder that leaves folders below it: CLASS/image.jpg of a single class has nothing around it.
    first = Counter(name.split("/")[0] for name in images)
    while len(first) == 1 and (folder := next(iter(first))).lower() not in SPLIT_NAMES:
        inner = [name[len(root) + len(folder) + 1 :] for name in images]
        if not any("/" in name for name in inner):
            break
        root += folder + "/"
        first = Counter(name.split("/")[0] for name in inner)
    divided = any(
        len(parts) > 2 and parts[0].lower() in SPLIT_NAMES
        for parts in (name[len(root) :].split("/") for name in images)
    )
    return root, divided


def _place(name: str, root: str, divided: bool) -> tuple[str, str | None]:
    """The split and the class that a path stands for; the class is None where it stands for none."""
    folders = name[len(root) :].split("/")[:-1] if name.startswith(root) else []
    if not divided:
        return "train", folders[0] if folders else None
    split = SPLIT_NAMES.get(folders[0].lower()) if folders else None
    return split, folders[1] if split and len(folders) > 1 else None
