"""Named splits: parts of a prepared data set by row numbers, in its folder's `splits/NAME.npz`; used as "NAME/PART".

A file holds `rows-PART` int64 for each part, numbering the rows of the stored splits one after the other in the order
of jaxmlic.json; `info`, JSON text on how it was made; and `digest`, which ties it to the images it was made for.
`datasets.Dataset` reads it, `datasets.write_named_split` and `jaxmlic data split` write it.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from jaxmlic.data.records import RecordSource
from jaxmlic.errors import UserError
from jaxmlic.storage import load_npz, save_npz

FOLDER = "splits"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NUMBER = re.compile(r"\d*$")
_ROWS = "rows-"


class PartSource(RecordSource):
    """A RecordSource of chosen rows, int64 [N], of the records that `file_instructions` name, in the order given."""

    def __init__(self, name: str, file_instructions: Sequence, rows: np.ndarray, num_labels: int, boxes: bool = False):
        super().__init__(name, file_instructions, num_labels, boxes)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        # The rows too: the file may be written again under the same name, with as many.
        return f"{super().__repr__()[:-1]}, rows={zlib.crc32(self._rows.tobytes()):08x})"

    def __getitem__(self, index: int) -> dict:
        """One record; IndexError outside 0..len-1, UserError when the file is damaged at this record."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return super().__getitem__(int(self._rows[index]))

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """Several records at once, read in parallel threads."""
        return super().__getitems__(self._rows[np.asarray(indices, np.int64)].tolist())


def digest(ids: Mapping[str, np.ndarray]) -> str:
    """Of {stored split: str [N]}: which images a data set holds, in which order."""
    text = json.dumps({split: names.tolist() for split, names in ids.items()})
    return hashlib.sha256(text.encode()).hexdigest()


def names(folder: Path) -> list[str]:
    """All "NAME/PART" of the data set in `folder`; UserError for a damaged file."""
    return [f"{path.stem}/{part}" for path in sorted(folder.glob(f"{FOLDER}/[!.]*.npz")) for part in _parts(path)]


def info(folder: Path, name: str) -> dict:
    """How `splits/NAME.npz` was made; UserError when it is damaged or missing."""
    return json.loads(str(_load(folder / FOLDER / f"{name}.npz", "info")["info"]))


def read(folder: Path, split: str, digest: str) -> np.ndarray:
    """The rows int64 [N] of "NAME/PART"; UserError unless the file was made for the images of this digest."""
    name, part = split.split("/")
    path = folder / FOLDER / f"{name}.npz"
    arrays = _load(path, "digest", _ROWS + part)
    if str(arrays["digest"]) != digest:
        raise UserError(
            f"{path}: made for another preparation of {folder.parent.name!r}, with other images or in another order: "
            f"make it again (`jaxmlic data split {folder.parent.name} --as={name} --overwrite ...`) or delete it"
        )
    return arrays[_ROWS + part]


def write(
    folder: Path,
    name: str,
    parts: Mapping[str, np.ndarray],
    info: Mapping[str, object],
    *,
    num_rows: int,
    digest: str,
    overwrite: bool,
    folds: bool,
) -> Path:
    """Write `splits/NAME.npz`, whole or not at all; see datasets.write_named_split."""
    for word in (name, *parts):
        if not _NAME.fullmatch(word):
            raise UserError(f"{word!r} cannot name a split or a part: use letters, digits, _ and -, no - or _ first")
    arrays = {part: np.asarray(rows, np.int64) for part, rows in parts.items()}
    for part, rows in arrays.items():
        if not rows.size:
            raise UserError(f"the part {name}/{part} would hold no images")
        if rows.ndim != 1 or rows.min() < 0 or rows.max() >= num_rows or len(np.unique(rows)) < len(rows):
            raise ValueError(f"the rows of {name}/{part} are not different numbers below {num_rows}")
    _refuse_shared(name, arrays, folds)
    path = folder / FOLDER / f"{name}.npz"
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already: add --overwrite to replace it, or choose another name with --as")
    about = {"info": json.dumps(info, sort_keys=True), "digest": digest}
    save_npz(path, about | {_ROWS + part: rows for part, rows in arrays.items()})
    return path


def _refuse_shared(name: str, parts: Mapping[str, np.ndarray], folds: bool) -> None:
    """UserError when a train... and a test... part share rows; of folds, trainI and testJ may."""
    trains, tests = ([part for part in parts if part.startswith(role)] for role in ("train", "test"))
    for one, other in product(trains, tests):
        if folds and _NUMBER.search(one).group() != _NUMBER.search(other).group():
            continue
        if shared := len(np.intersect1d(parts[one], parts[other], assume_unique=True)):
            raise UserError(f"{name}/{one} and {name}/{other} share {shared:,} images: train and test must not")


def _parts(path: Path) -> list[str]:
    return [key.removeprefix(_ROWS) for key in _load(path) if key.startswith(_ROWS)]


def _load(path: Path, *needed: str) -> dict[str, np.ndarray]:
    """The needed arrays of a file, all of them if none is named; UserError when it is damaged or missing."""
    remedy = "make it again with `jaxmlic data split ... --overwrite` or delete it"
    return load_npz(path, needed, () if needed else None, what="named split", remedy=remedy)
