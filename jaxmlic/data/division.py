"""Parts of a data set drawn anew: folds, parts of given sizes, labelled subsets, or what lists of images name.

A part is int64 positions among the N images that are divided, whose labels are int8 [N, C]. Which images share a part
follows from the labels and a seed: rows are divided by iterative stratification, or regardless of labels.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.errors import UserError
from jaxmlic.labels.stratify import part_sizes, stratified_parts
from jaxmlic.storage import reason

Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Divider:
    """How rows are divided: by their labels int8 [N, C] if `stratified`, else at random."""

    labels: np.ndarray
    seed: int
    stratified: bool = True

    def part_of(self, shares: list[float], covering_part: int | None) -> np.ndarray:
        """int64 [N], the part of each row; `shares` add up to 1, `covering_part` is that of `stratified_parts`."""
        if self.stratified:
            return stratified_parts(self.labels, shares, self.seed, covering_part=covering_part)
        sizes = part_sizes(len(self.labels), shares)
        return np.random.default_rng(self.seed).permutation(np.repeat(np.arange(len(sizes)), sizes))

    def folds(self, count: int) -> Parts:
        """`testI` is fold I of `count`, `trainI` all other folds; UserError for a count outside 2..N."""
        if not 2 <= count <= len(self.labels):
            raise UserError(f"--folds={count}: from 2 to the number of images, {len(self.labels):,}")
        fold = self.part_of([1 / count] * count, None)
        parts = {}
        for number in range(count):
            parts |= {f"train{number}": np.flatnonzero(fold != number), f"test{number}": np.flatnonzero(fold == number)}
        return parts

    def sized(self, shares: Mapping[str, float]) -> Parts:
        """Parts of given shares of all rows, 1 together at most. The first one is the one to train on."""
        rest = 1 - sum(shares.values())
        # What no part asks for is a part of its own that is left away.
        part_of = self.part_of([*shares.values(), rest] if rest > 1e-9 else list(shares.values()), 0)
        return {part: np.flatnonzero(part_of == number) for number, part in enumerate(shares)}

    def subset(self, share: float) -> Parts:
        """`labelled`, the given share of all rows, and `unlabelled`, the rest."""
        part_of = self.part_of([share, 1 - share], 0)
        return {"labelled": np.flatnonzero(part_of == 0), "unlabelled": np.flatnonzero(part_of == 1)}

    def draws(self, count: int, share: float) -> Parts:
        """`drawI`, I < count: independent draws of the given share of all rows; they may have rows in common."""
        if count < 1:
            raise UserError(f"--draws={count}: at least 1")
        seeds = np.random.SeedSequence(self.seed).generate_state(count)
        return {
            f"draw{number}": replace(self, seed=int(seed)).subset(share)["labelled"]
            for number, seed in enumerate(seeds)
        }


@dataclass(frozen=True)
class Listed:
    """The parts that lists name, what they name that is not there, and how many were found by their base name alone."""

    parts: Parts
    missing: list[Problem]
    num_by_base: int


def read_lists(files: Mapping[str, str], ids: np.ndarray) -> Listed:
    """Find the images that files list, one name a line.

    Args:
      files: {part: file}.
      ids: str [N], the images that there are.

    Raises:
      UserError: a file cannot be read, lists an image twice, or a name that several images may have.
    """
    positions_by: tuple[dict[str, list[int]], ...] = ({}, {}, {})
    for at, name in enumerate(ids.tolist()):
        for table, key in zip(positions_by, _keys(name), strict=True):
            table.setdefault(key, []).append(at)
    parts, missing, num_by_base = {}, [], 0
    for part, file in files.items():
        line_of: dict[int | str, int] = {}
        positions = []
        for line, name in _lines(file):
            keys = enumerate(zip(positions_by, _keys(name), strict=True))
            rank, found = next(((rank, table[key]) for rank, (table, key) in keys if key in table), (0, []))
            if len(found) > 1:
                one, other = ids[found[:2]].tolist()
                raise UserError(f"{file}:{line}: {name!r} may be {one!r} or {other!r}: give the whole name")
            image = found[0] if found else name
            if image in line_of:
                raise UserError(f"{file}:{line}: {name!r} is listed twice, first in line {line_of[image]}")
            line_of[image] = line
            if found:
                positions.append(image)
                num_by_base += rank > 0
            else:
                missing.append(Problem(file, line, f"no image {name!r} in the data set"))
        parts[part] = np.array(positions, np.int64)
    return Listed(parts, missing, num_by_base)


def _keys(name: str) -> tuple[str, str, str]:
    """What an image is found by, best first: its whole name, its base name, that without the suffix."""
    whole = name.replace("\\", "/")
    base = whole.rsplit("/", 1)[-1]
    return whole, base, os.path.splitext(base)[0]


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file}: cannot be read (it is not UTF-8)") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason(error)})") from None
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return ((number, line) for number, line in lines if line)
