"""Word vectors of label names: from a GloVe or word2vec file, an npz, the table of this package, or none at all."""

import dataclasses
import gzip
import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from jaxmlic.errors import UserError

ASSETS = Path(__file__).with_name("word_vectors_assets")
SOURCES = ("glove100", "random", "one_hot")

COMPOUNDS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
"""VOC's joined names. They come before the name as it is: what a crawl has of such a string is a typing error."""


@dataclasses.dataclass(frozen=True)
class Lookup:
    """How the names were found.

    Attributes:
      source: what was asked for.
      words: {name: the words of the source that its vector is the mean of}; empty for random and one-hot vectors.
      partial: {name: those of its words that the source lacks}, for names found by the rest of their words.
      missing: names of which the source has no word; their vectors are random.
    """

    source: str
    words: Mapping[str, tuple[str, ...]]
    partial: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        """One line for a log."""
        if not (self.words or self.missing):
            return f"word vectors: {self.source}"
        text = f"word vectors from {self.source}: {len(self.words)} of {len(self.words) + len(self.missing)} names"
        if self.partial:
            lacking = (f"{name} (without {' '.join(words)})" for name, words in self.partial.items())
            text += f"; found in part: {', '.join(lacking)}"
        return text + (f"; random for {', '.join(self.missing)}" if self.missing else "")


def word_vectors(
    names: Sequence[str],
    source: str | os.PathLike = "glove100",
    *,
    dim: int = 300,
    seed: int = 0,
    missing: str = "random",
) -> tuple[np.ndarray, Lookup]:
    """A vector for each label name.

    A name is read as COMPOUNDS has it, as it is, in small letters, with `_` or `-` for its spaces (word2vec's
    phrases), word by word (split at spaces, `_`, `-` and `/`; the mean), and without its separators. The first of
    these readings whose words are all there is taken, else the first of which one is there.

    Args:
      names: C label names.
      source: "glove100" (GloVe, 100-d, for the names of VOC, COCO, NUS-WIDE and Corel-5K; in this package), "random",
        "one_hot", or a file: the text form of GloVe, word2vec or fastText, as it is or gzip'd, which is streamed, or
        an npz with `names` str [V] and `vectors` float [V, D].
      dim: D of "random".
      seed: of random vectors. Each depends on it and on its name alone, not on the other names.
      missing: "random" gives a name that is not found a normal vector as large as those that are, "error" stops.

    Returns:
      (vectors, how): float32 [C, D], D = C for "one_hot"; and what was found.

    Raises:
      UserError: the file cannot be read or a row of it is malformed (file:line); a name is missing and `missing` is
        "error"; no name at all is found.
      ValueError: no names, or a bad `missing` or `dim`.
    """
    if missing not in ("random", "error") or dim < 1 or not len(names):
        raise ValueError(f"missing={missing!r}, dim={dim}, {len(names)} names: random or error, at least 1, at least 1")
    if source == "one_hot":
        return np.eye(len(names), dtype=np.float32), Lookup("one_hot", {}, {}, ())
    if source == "random":
        return np.stack([_random(name, dim, seed) for name in names]), Lookup("random", {}, {}, ())
    readings = {name: _readings(name) for name in names}
    wanted = {word for of_name in readings.values() for words in of_name for word in words}
    table = _read(ASSETS / "glove100.npz" if source == "glove100" else Path(source).expanduser(), wanted)
    found, partial = {}, {}
    for name, of_name in readings.items():
        complete = (words for words in of_name if all(word in table for word in words))
        some = (words for words in of_name if any(word in table for word in words))
        if words := next(complete, None) or next(some, None):
            found[name] = tuple(word for word in words if word in table)
            if lacking := tuple(word for word in words if word not in table):
                partial[name] = lacking
    lost = tuple(name for name in readings if name not in found)
    if not found:
        raise UserError(f"{source}: none of the {len(names)} label names is in it ({', '.join(lost[:5])})")
    if lost and missing == "error":
        raise UserError(f"{source}: no vector for {', '.join(map(repr, lost))}; missing='random' makes one up")
    rows = {name: np.mean([table[word] for word in words], axis=0) for name, words in found.items()}
    known = np.stack(list(rows.values()))
    rows |= {name: known.std() * _random(name, known.shape[1], seed) for name in lost}
    return np.stack([rows[name] for name in names]).astype(np.float32), Lookup(os.fspath(source), found, partial, lost)


def _random(name: str, dim: int, seed: int) -> np.ndarray:
    """Standard normal float32 [dim]; the same for the same name, whichever others there are."""
    digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big")).standard_normal(dim, np.float32)


def _readings(name: str) -> list[tuple[str, ...]]:
    """The words to look for, best reading first."""
    whole = " ".join(name.split())
    small = whole.lower()
    readings = [tuple(COMPOUNDS[small].split())] if small in COMPOUNDS else []
    readings += [(whole,), (small,)]
    readings += [(re.sub(r"[ _-]+", joint, text),) for joint in ("_", "-") for text in (whole, small)]
    readings.append(tuple(part for part in re.split(r"[ _/-]+", small) if part))
    readings.append((re.sub(r"[ _-]+", "", small),))
    return [words for words in dict.fromkeys(readings) if words]


# --- files


def _read(path: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """{word: float32 [D]} of those wanted words that a file has."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] == b"PK":
            return _read_npz(path, wanted)
        with gzip.open(path) if start[:2] == b"\x1f\x8b" else path.open("rb") as lines:
            return _read_text(path, lines, wanted)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _read_npz(path: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    try:
        # Opened here: numpy leaves a file open that is no zip after all.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            names, vectors = file["names"], np.asarray(file["vectors"], np.float32)
    except (OSError, KeyError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: no npz with names and vectors ({why}); unpack other archives") from None
    if names.dtype.kind != "U" or names.ndim != 1 or vectors.ndim != 2 or len(vectors) != len(names):
        raise UserError(f"{path}: names {names.shape} and vectors {vectors.shape} are not text [V] and numbers [V, D]")
    table = {}
    for row, name in enumerate(names.tolist()):
        if name in wanted and name not in table:
            if not np.isfinite(vectors[row]).all():
                raise UserError(f"{path}: the vector of {name!r} is not finite")
            table[name] = vectors[row]
    return table


def _read_text(path: Path, lines: IO[bytes], wanted: set[str]) -> dict[str, np.ndarray]:
    """Of a file with `word number number ...` a line, after word2vec's line `count width` where there is one.

    Every row's width is checked, and the numbers of the wanted ones. The first row of a word counts: files are sorted
    by frequency.
    """
    keys = {word.encode("utf-8", "surrogatepass"): word for word in wanted}
    table: dict[str, np.ndarray] = {}
    width = None
    for number, line in enumerate(lines, 1):
        line = line.rstrip(b" \r\n")
        spaces = line.count(b" ")
        if width is None:
            fields = line.split(b" ")
            if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                width = int(fields[1])
                continue
            width = spaces
        if spaces < width or not width:
            told = line[:40].decode("utf-8", "replace")
            raise UserError(f"{path}:{number}: {spaces} numbers, not {width or 'a word and its vector'} ({told!r} ...)")
        if spaces > width:  # some words of GloVe 840B hold spaces; a word with too many numbers does not
            fields = line.split(b" ")
            if all(_is_number(field) for field in fields[1:]):
                raise UserError(f"{path}:{number}: {spaces} numbers, not {width}")
            word = b" ".join(fields[:-width])
        else:
            word = line[: line.index(b" ")]
        name = keys.get(word)
        if name is None or name in table:
            continue
        try:
            vector = np.array(line[len(word) + 1 :].split(b" "), np.float32)
        except ValueError:
            raise UserError(f"{path}:{number}: the row of {name!r} holds something that is not a number") from None
        if not np.isfinite(vector).all():
            raise UserError(f"{path}:{number}: the vector of {name!r} is not finite")
        table[name] = vector
    if width is None:
        raise UserError(f"{path}: an empty file")
    return table


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
