"""Class names as a text encoder sees them: a file of one vector a name, such as CLIP's text features of its prompts.

`.npz`: `names` str [V] and `vectors` float [V, D]. `.safetensors`: a tensor [D] a name, or one tensor `vectors` [V, D]
with a JSON list `names` in the metadata. Either may hold `logit_scale`, the natural logarithm of what multiplies
cosines, and `logit_bias`, what is added to them, both one number, as the files of CLIP and SigLIP have them. Nothing in
a file is run.
"""

import dataclasses
import json
import os
import re
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors

from jaxmlic import storage
from jaxmlic.errors import UserError, did_you_mean

SCALE, BIAS = "logit_scale", "logit_bias"
WORDS = "words"  # names the rows of an .npz of words, in place of `names`
_LARGEST = 10.0  # of a logarithm; CLIP stops at log(100) = 4.6
_WHAT = "npz with names and vectors"
_REMEDY = "unpack other archives"
_MAX_HEADER = 100_000_000  # bytes, of a safetensors file: the limit of its own library
_SHOWN = 8  # names in a message


@dataclasses.dataclass(frozen=True, eq=False)
class TextVectors:
    """The rows of a file.

    Attributes:
      path: of the file.
      names: V names, as they stand in it.
      vectors: float [V, D].
      scale: exp(logit_scale); None where the file has none.
      bias: logit_bias; None where the file has none.
    """

    path: Path
    names: list[str]
    vectors: np.ndarray
    scale: float | None = None
    bias: float | None = None

    def of(self, labels: Sequence[str], hint: str = "") -> np.ndarray:
        """float32 [C, D]: the vector of each label.

        A label is looked for as it is, then without regard to capitals, spaces, `_`, `-` and `/`.
        hint: what else could be done about labels that are missing.

        Raises:
          UserError: labels that are not in the file, or twice, or whose vector is not finite or zero.
        """
        exact, loose = {}, {}
        for row, name in enumerate(self.names):
            exact.setdefault(name, []).append(row)
            loose.setdefault(_key(name), []).append(row)
        found = {label: exact.get(label) or loose.get(_key(label), []) for label in labels}
        if missing := [label for label in labels if not found[label]]:
            listed = ", ".join(repr(label) for label in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise UserError(
                f"{self.path}: no vector for {len(missing)} of {len(labels)} labels: {listed}{more}"
                f"{did_you_mean(missing[0], self.names)}; encode their names with the same text encoder and add them"
                f"{hint}"
            )
        for label, rows in found.items():
            if len(rows) > 1:
                raise UserError(f"{self.path}: {label!r} has {len(rows)} vectors; leave one")
            if not np.isfinite(self.vectors[rows[0]]).all():
                raise UserError(f"{self.path}: the vector of {label!r} is not finite")
            if not self.vectors[rows[0]].any():
                raise UserError(f"{self.path}: the vector of {label!r} is zero, which has no direction")
        return self.vectors[[found[label][0] for label in labels]].astype(np.float32)


def is_text_file(path: Path) -> bool:
    """Whether a file, by its content, is a safetensors or an .npz that does not call its rows words."""
    with path.open("rb") as file:
        start = file.read(9)
        if start[:2] != b"PK":
            return _is_safetensors(start)
        try:
            with zipfile.ZipFile(file) as archive:
                return f"{WORDS}.npy" not in archive.namelist()
        except zipfile.BadZipFile:
            return True


def read(path: str | os.PathLike) -> TextVectors:
    """The rows of a file, here or in a bucket. UserError where it is missing, damaged or of another kind."""
    path = storage.to_path(path)
    local = storage.local_copy(path)
    try:
        with local.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({storage.reason(error)}); name a file of label vectors") from None
    if _is_safetensors(start):
        return _read_safetensors(path, local)
    if start[:2] == b"PK":
        return _read_npz(path, local)
    raise UserError(f"{path}: neither an .npz with names and vectors nor a .safetensors; see docs/zero_shot.md")


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [C, D]: each row of float [C, D] divided by its length."""
    vectors = np.asarray(vectors, np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def checked(path: Path, names: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names [V] and vectors [V, D] of a file; UserError where they are not text and numbers of these shapes."""
    text, numbers = names.dtype.kind == "U", vectors.dtype.kind in "fiu"
    if not text or not numbers or names.ndim != 1 or vectors.ndim != 2 or len(vectors) != len(names):
        raise UserError(f"{path}: names {names.shape} and vectors {vectors.shape} are not text [V] and numbers [V, D]")
    return names, vectors


def _key(name: str) -> str:
    return re.sub(r"[\s_/-]+", "", name).casefold()


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= _MAX_HEADER


def _read_npz(path: Path, local: Path) -> TextVectors:
    arrays = storage.load_npz(local, ("names", "vectors"), (SCALE, BIAS), what=_WHAT, remedy=_REMEDY)
    names, vectors = checked(path, arrays["names"], arrays["vectors"])
    return TextVectors(path, names.tolist(), vectors, *_numbers(path, arrays))


def _read_safetensors(path: Path, local: Path) -> TextVectors:
    try:
        with safetensors.safe_open(local, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        listed = json.loads(metadata["names"]) if "names" in metadata else None
    except Exception as error:  # its library has kinds of its own, and so has JSON
        raise UserError(f"{path}: damaged or unreadable ({str(error)[:200]}); write it again") from None
    numbers = _numbers(path, arrays)
    rows = {name: array for name, array in arrays.items() if name not in (SCALE, BIAS)}
    if listed is not None and "vectors" in rows:
        names, vectors = checked(path, np.array(listed), rows["vectors"])
        return TextVectors(path, names.tolist(), vectors, *numbers)
    if not rows:
        raise UserError(f"{path}: holds no vectors; one tensor a label is wanted")
    flat = {name: array.reshape(-1) for name, array in rows.items()}
    widths = {len(array) for array in flat.values()}
    odd = next((name for name, array in rows.items() if max(array.shape, default=0) != array.size), None)
    if odd is not None or len(widths) > 1:
        name = odd or next(name for name, array in flat.items() if len(array) != len(next(iter(flat.values()))))
        raise UserError(
            f"{path}: {name!r} is {list(rows[name].shape)}, and one vector [D] a label is wanted, or 'vectors' [V, D] "
            "with a JSON list 'names' in the metadata"
        )
    return TextVectors(path, list(flat), np.stack(list(flat.values())), *numbers)


def _numbers(path: Path, arrays: dict[str, np.ndarray]) -> tuple[float | None, float | None]:
    """(scale, bias), None for what the file lacks."""
    found = {}
    for name in (SCALE, BIAS):
        if name in arrays:
            if arrays[name].size != 1 or arrays[name].dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all():
                raise UserError(f"{path}: {name} is not one finite number")
            found[name] = float(arrays[name].reshape(()))
    if found.get(SCALE, 0.0) > _LARGEST:
        raise UserError(
            f"{path}: {SCALE} is {found[SCALE]:g}: it is the natural logarithm of the scale (of 100: 4.6052), "
            "as in the files of CLIP and SigLIP"
        )
    return (float(np.exp(found[SCALE])) if SCALE in found else None), found.get(BIAS)
