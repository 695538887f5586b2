"""CIFAR-10 (Krizhevsky, 2009) and STL-10 (Coates et al., 2011) from the archives of their owners, or those extracted.

Both are plain pixels in large files, and every label is one of ten classes.
"""

import io
import math
import pickle
import pickletools

import numpy as np

from jaxmlic.data.prepare.sources.files import Files, LocalFile, Member, Pixels, StoredPixels
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.prepare.tables.table import Row, Table
from jaxmlic.errors import UserError

CLASSES = 10
BATCH = 10_000
"""Images of one of CIFAR-10's six files; 50,000 to train and 10,000 to test."""

STL = {"train": 5_000, "test": 8_000, "unlabelled": 100_000}
FOLDS, FOLD = 10, 1_000
"""STL-10's protocol: ten subsets of the training images, 1,000 in each."""

_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_CIFAR_SHAPE = (3, 32, 32)  # channel, row, column
_STL_SHAPE = (3, 96, 96)  # channel, column, row
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")  # the pickle instructions that fill its memo
_STL_FILES = {"train": "train_X.bin", "test": "test_X.bin", "unlabelled": "unlabeled_X.bin"}


def read_cifar10(files: Files) -> Table:
    """CIFAR-10 from `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz` (the binary one if both are there).

    Returns:
      a Table with the splits `train` (50,000) and `test` (10,000), ids such as "train/00000" in the files' order, and
      int8 one-hot labels.

    Raises:
      UserError: a file is missing or of another size, or a pickle asks for more than arrays and texts.
    """
    binary = bool(files.ending("test_batch.bin"))
    if not binary and not files.ending("test_batch"):
        raise UserError(f"{files}: no test_batch.bin or test_batch there: give cifar-10-binary.tar.gz as --source")
    names = _class_names(files, "batches.meta.txt") if binary else _pickled_names(files)
    table = Table(names, {}, [], [f"pixels from the {'binary' if binary else 'Python'} files"], has_boxes=False)
    one_hot = np.eye(CLASSES, dtype=np.int8)
    for split, batches in _BATCHES.items():
        rows = table.splits[split] = []
        for number, batch in enumerate(batches):
            name = files.one(batch + ".bin" * binary, f"{BATCH:,} images")
            labels, pixels = (_binary_batch if binary else _pickled_batch)(files, name)
            for i, (label, image) in enumerate(zip(labels, pixels, strict=True)):
                if label >= CLASSES:
                    table.problems.append(Problem(name, i + 1, f"label {label}: 0 to {CLASSES - 1} are classes"))
                    continue
                id = f"{split}/{number * BATCH + i:05d}"
                rows.append(Row(id, Pixels(image.transpose(1, 2, 0)), one_hot[label], [], (name, i + 1)))
    return table


def _class_names(files: Files, tail: str) -> list[str]:
    """The ten names of a text file; UserError when it has others."""
    name = files.one(tail, "class names")
    names = files.text(name).split()
    if len(set(names)) != CLASSES or len(names) != CLASSES:
        raise UserError(f"{name}: {len(names)} class names, {len(set(names))} of them different: {CLASSES} are needed")
    return names


def _binary_batch(files: Files, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 [BATCH] and pixels uint8 [BATCH, 3, 32, 32] of one binary file."""
    data = files.read(name)
    row = 1 + math.prod(_CIFAR_SHAPE)
    _check_size(name, len(data), BATCH * row)
    rows = np.frombuffer(data, np.uint8).reshape(BATCH, row)
    return rows[:, 0], rows[:, 1:].reshape(BATCH, *_CIFAR_SHAPE)


def _check_size(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(f"{name}: {found:,} bytes, its owner's file has {expected:,}: download the archive again")


def _pickled_batch(files: Files, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The same of one Python file: a pickled dict with `labels`, a list, and `data`, uint8 [BATCH, 3072]."""
    batch = _unpickle(files, name)
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise UserError(f"{name}: no 'data' and 'labels' as in cifar-10-python.tar.gz: download the archive again")
    _check_size(f"{name}: data", data.pixels.size, BATCH * math.prod(_CIFAR_SHAPE))
    if len(labels) != BATCH or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise UserError(f"{name}: labels must be {BATCH:,} small numbers: download the archive again")
    return np.array(labels, np.uint8), data.pixels.reshape(BATCH, *_CIFAR_SHAPE)


def _pickled_names(files: Files) -> list[str]:
    name = files.one("batches.meta", "class names")
    names = _unpickle(files, name).get(b"label_names")
    if not isinstance(names, list) or len(names) != CLASSES or not all(isinstance(word, bytes) for word in names):
        raise UserError(f"{name}: no {CLASSES} 'label_names' in it: download the archive again")
    names = [word.decode("ascii", "replace") for word in names]
    if len(set(names)) != CLASSES or "" in names:
        raise UserError(f"{name}: its {CLASSES} 'label_names' are not all different: download the archive again")
    return names


def _unpickle(files: Files, name: str) -> dict:
    """The dict of a Python 2 pickle, its texts as bytes and its arrays as `_Array`; UserError on anything else.

    A pickle can name any function and have it called. This one may name three, and gets stand-ins that only store.
    """
    data = files.read(name)
    try:
        # A place in the memo takes memory up to its number: sixteen bytes of file can ask for 16 GiB.
        if any(code.name in _MEMO and place > len(data) for code, place, _ in pickletools.genops(data)):
            raise ValueError("a place in its memo beyond its size")
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except UserError as refusal:
        raise UserError(f"{name}: {refusal}") from None
    except Exception as error:  # a damaged pickle ends in almost any exception
        raise UserError(f"{name}: not a pickle as in cifar-10-python.tar.gz ({error}): download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{name}: holds no dict: download cifar-10-python.tar.gz again")
    return found


class _Array:
    """Stands in for the array that a pickle describes: nothing of NumPy runs before the bytes are checked."""

    pixels = np.empty(0, np.uint8)

    def __init__(self, *_):
        """What NumPy makes of its arguments is an empty array; the state comes next."""

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.name != b"u1" or not isinstance(data, bytes):
            raise ValueError("an array of something other than bytes")
        self.pixels = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    def __init__(self, name, *_):
        self.name = name

    def __setstate__(self, state):
        """Byte order and the like: of no interest for bytes."""


class _Unpickler(pickle.Unpickler):
    _KNOWN = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self._KNOWN:
            raise UserError(f"a pickle that wants to run {module}.{name}: refused, nothing was run")
        return self._KNOWN[module, name]


def read_stl10(files: Files) -> Table:
    """STL-10 from `stl10_binary.tar.gz`; its pixels stay in the archive or folder until they are asked for.

    Returns:
      a Table with the splits `train` (5,000), `test` (8,000) and `unlabelled` (100,000, every label -1, unknown), ids
      such as "train/00000" in the files' order, int8 one-hot labels, and in `named_splits` the ten folds of its
      protocol: "folds/train0" to "folds/train9", 1,000 training images each.

    Raises:
      UserError: a file is missing or of another size, or the folds are not ten lines of different training images.
    """
    names = _class_names(files, "class_names.txt")
    table = Table(names, {}, [], [], has_boxes=False)
    one_hot = np.eye(CLASSES, dtype=np.int8)
    unknown = np.full(CLASSES, -1, np.int8)
    for split, count in STL.items():
        name = files.one(_STL_FILES[split], f"{count:,} images")
        file = _in_parts(files, name, count * math.prod(_STL_SHAPE))
        classes = None if split == "unlabelled" else _stl_classes(files, f"{split}_y.bin", count)
        rows = table.splits[split] = []
        for i in range(count):
            if classes is not None and not 1 <= classes[i] <= CLASSES:
                why = f"label {classes[i]}: 1 to {CLASSES} are classes"
                table.problems.append(Problem(f"{split}_y.bin", i + 1, why))
                continue
            image = StoredPixels(file, i * math.prod(_STL_SHAPE), _STL_SHAPE, (2, 1, 0))
            labels = unknown if classes is None else one_hot[classes[i] - 1]
            rows.append(Row(f"{split}/{i:05d}", image, labels, [], (name, i + 1)))
    there = {row.id for row in table.splits["train"]}
    folds = {f"train{k}": [f"train/{i:05d}" for i in fold] for k, fold in enumerate(_folds(files))}
    table.named_splits["folds"] = {part: [id for id in ids if id in there] for part, ids in folds.items()}
    table.notes.append(f"folds/train0 to folds/train{FOLDS - 1} are the owner's folds; unlabelled: every label unknown")
    return table


def _in_parts(files: Files, name: str, size: int) -> LocalFile | Member:
    """The file, after a check of its size; UserError for a zip, which would be inflated once for every image."""
    file = files[name]
    try:
        found = file.size
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    _check_size(name, found, size)
    if isinstance(file, Member) and file.archive.path.suffix.lower() == ".zip":
        raise UserError(f"{file.archive.path}: cannot be read in parts: give stl10_binary.tar.gz, or extract it")
    return file


def _stl_classes(files: Files, tail: str, count: int) -> np.ndarray:
    name = files.one(tail, f"{count:,} labels")
    data = files.read(name)
    _check_size(name, len(data), count)
    return np.frombuffer(data, np.uint8)


def _folds(files: Files) -> list[list[int]]:
    name = files.one("fold_indices.txt", f"{FOLDS} lines of {FOLD:,} numbers of training images")
    lines = files.text(name).strip().split("\n")
    if len(lines) != FOLDS:
        raise UserError(f"{name}: {len(lines)} lines, its owner's file has {FOLDS}: download the archive again")
    folds = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        fold = [
            int(word)
            for word in words
            if word.isascii() and word.isdigit() and len(word) < 9 and int(word) < STL["train"]
        ]
        if len(words) != FOLD or len(set(fold)) != FOLD:
            raise UserError(
                f"{name}:{number}: not {FOLD:,} different numbers from 0 to {STL['train'] - 1:,}: download the archive "
                "again"
            )
        folds.append(fold)
    return folds
