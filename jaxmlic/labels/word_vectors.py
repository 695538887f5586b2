"""Word vectors of label names: from a GloVe or word2vec file, the table of this package, random or one-hot.

Or the vectors that a text encoder gave the names themselves, from a file of these (see `text_vectors`).
"""

import dataclasses
import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from jaxmlic import storage
from jaxmlic.errors import UserError
from jaxmlic.labels import text_vectors

ASSETS = Path(__file__).with_name("word_vectors_assets")

COMPOUNDS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
"""VOC's joined names. They are tried before the name itself, which in a crawl of the web is a typing error."""


@dataclasses.dataclass(frozen=True)
class Lookup:
    """How the names were found.

    Attributes:
      source: the argument of `word_vectors`.
      words: {name: the words whose vectors were averaged}; empty for random and one-hot vectors.
      partial: {name: its words that the source lacks}, for names of which some words were found.
      missing: names without any word in the source; their vectors are random.
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
) -> tuple[np.ndarray, Lookup]:
    """A vector for each label name.

    A name is read as in COMPOUNDS, as it is, in small letters, with `_` or `-` for its spaces (word2vec's phrases),
    word by word (split at spaces, `_`, `-` and `/`; the mean), and without its separators. The first of these readings
    with all its words in the source counts, else the first with one word in it. A name without any gets a random normal
    vector with the standard deviation of the vectors found. In a text encoder's file every name must have a vector of
    its own.

    Args:
      names: C label names.
      source: "glove100" (GloVe, 100-d, for the names of VOC, COCO, NUS-WIDE and Corel-5K; in this package), "random",
        "one_hot", or a file: the text form of GloVe, word2vec or fastText, as it is or gzip'd, which is streamed; an
        npz with `words` str [V] and `vectors` float [V, D]; or a text encoder's (see `text_vectors`).
      dim: D of "random".
      seed: of random vectors. Each depends on it and on its name alone, not on the other names.

    Returns:
      (vectors, lookup): float32 [C, D], D = C for "one_hot"; and how the names were found.

    Raises:
      UserError: the file cannot be read or a row of it is malformed (file:line); no name at all is found; a text
        encoder's file lacks a name.
      ValueError: no names, or `dim` below 1.
    """
    if dim < 1 or not len(names):
        raise ValueError(f"dim={dim}, {len(names)} names: at least 1 each")
    if source == "one_hot":
        return np.eye(len(names), dtype=np.float32), Lookup("one_hot", {}, {}, ())
    if source == "random":
        return np.stack([_random(name, dim, seed) for name in names]), Lookup("random", {}, {}, ())
    readings = {name: _readings(name) for name in names}
    wanted = {word for of_name in readings.values() for words in of_name for word in words}
    if source == "glove100":
        table = _read_npz(ASSETS / "glove100.npz", wanted, "names")
    else:
        table = _read(storage.local_copy(source), wanted)
    if isinstance(table, text_vectors.TextVectors):
        hint = f"; in an .npz of words, whose lacking labels get random ones, `names` is called `{text_vectors.WORDS}`"
        return table.of(names, hint), Lookup(os.fspath(source), {name: (name,) for name in names}, {}, ())
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
    rows = {name: np.mean([table[word] for word in words], axis=0) for name, words in found.items()}
    known = np.stack(list(rows.values()))
    rows |= {name: known.std() * _random(name, known.shape[1], seed) for name in lost}
    return np.stack([rows[name] for name in names]).astype(np.float32), Lookup(os.fspath(source), found, partial, lost)


def _random(name: str, dim: int, seed: int) -> np.ndarray:
    """Standard normal float32 [dim], by seed and name."""
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


def _read(path: Path, wanted: set[str]) -> dict[str, np.ndarray] | text_vectors.TextVectors:
    """{word: float32 [D]} for the wanted words in a file, or all of a text encoder's."""
    try:
        if text_vectors.is_text_file(path):
            return text_vectors.read(path)
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] == b"PK":
            return _read_npz(path, wanted, text_vectors.WORDS)
        with gzip.open(path) if start[:2] == b"\x1f\x8b" else path.open("rb") as lines:
            return _read_text(path, lines, wanted)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _read_npz(path: Path, wanted: set[str], key: str) -> dict[str, np.ndarray]:
    arrays = storage.load_npz(path, (key, "vectors"), (), what=f"npz with {key} and vectors")
    names, vectors = text_vectors.checked(path, arrays[key], arrays["vectors"])
    vectors, table = vectors.astype(np.float32, copy=False), {}
    for row, name in enumerate(names.tolist()):
        if name in wanted and name not in table:
            if not np.isfinite(vectors[row]).all():
                raise UserError(f"{path}: the vector of {name!r} is not finite")
            table[name] = vectors[row]
    return table


def _read_text(path: Path, lines: IO[bytes], wanted: set[str]) -> dict[str, np.ndarray]:
    """{word: float32 [D]} from lines `word number number ...`, after word2vec's line `count width` where there is one.

    Every row's width is checked, and the numbers of the wanted words. The first row of a word counts: files are sorted
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
            start = line[:40].decode("utf-8", "replace")
            raise UserError(
                f"{path}:{number}: {spaces} numbers, not {width or 'a word and its vector'} ({start!r} ...)"
            )
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
