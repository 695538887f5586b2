"""Arithmetic on label matrices int8 [N, C] in {1 present, 0 absent, -1 unknown}: counts and stratified parts."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def counts(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each class is present, absent and unknown: three int64 [C] from labels int8 [N, C]."""
    labels = np.asarray(labels)
    present = np.count_nonzero(labels == 1, axis=0)
    unknown = np.count_nonzero(labels == -1, axis=0)
    return present, len(labels) - present - unknown, unknown


def part_sizes(num_rows: int, proportions: Sequence[float]) -> np.ndarray:
    """Whole sizes int64 [K] that add up to num_rows, each its share rounded up or down (largest remainders go up).

    Raises:
      ValueError: a proportion is negative, or they do not add up to 1.
    """
    proportions = np.asarray(proportions, np.float64)
    if proportions.ndim != 1 or not (proportions >= 0).all() or not math.isclose(proportions.sum(), 1, rel_tol=1e-9):
        raise ValueError(f"proportions {proportions.tolist()} are not shares of 1")
    shares = num_rows * proportions
    sizes = np.floor(shares + 1e-6).astype(np.int64)  # 3000 * (700 / 3000) is 700, whatever the last bit says
    sizes[np.argsort(sizes - shares, kind="stable")[: num_rows - sizes.sum()]] += 1
    return sizes


def stratified_parts(
    labels: np.ndarray, proportions: Sequence[float], seed: int, *, covering_part: int | None = None
) -> np.ndarray:
    """Divide rows into K parts so that every class is divided in the same proportions (as nearly as rows allow).

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011, Algorithm 1): the class with the fewest rows left
    goes first, each of its rows to the part that lacks most rows of that class, then to the one with most room. Four
    things are added. The sizes are exact. Rows without a positive form two more classes, those with unknown labels (-1)
    and those without. The last row of a class goes to another part where all its other rows are in one, so that the
    class is absent from at most K - 2 of K parts; with `covering_part`, it has a positive in that part instead, as long
    as the part has room for one row a class. Last, rows that differ in one class are exchanged where that brings the
    class nearer to its share.

    Args:
      labels: int8 [N, C] in {1, 0, -1}.
      proportions: [K], adding up to 1.
      seed: of the order in which equal choices are made.
      covering_part: the part that gets a positive of every class with at least two.

    Returns:
      int64 [N], the part of each row, 0..K-1; part_sizes(N, proportions) of each.

    Raises:
      ValueError: labels are not two-dimensional, proportions are no shares of 1.
    """
    labels = np.asarray(labels)
    of_row = _positives(labels)
    num_rows, num_labels = labels.shape
    empty = np.array([row for row, found in enumerate(of_row) if not found], np.int64)
    for row, kind in zip(empty.tolist(), (labels[empty] == -1).any(1).tolist(), strict=True):
        of_row[row] = [num_labels + kind]
    sizes = part_sizes(num_rows, proportions)
    part_of = _assign(of_row, num_labels, proportions, sizes, seed, covering_part)
    _even_out(of_row, num_labels, proportions, part_of)
    return np.array(part_of, np.int64)


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows in two, as for a validation part; the same seed gives the same rows.

    As stratified_parts with `covering_part` for the rest, but rows without positives are assigned at random, and no
    rows are exchanged.

    Args:
      labels: int8 [N, C] in {1, 0, -1}.
      fraction: of the rows that go to the part, 0..1.
      seed: of the order in which equal choices are made.

    Returns:
      (rest, part): sorted int64 row indices; together all rows, with round(N * fraction) of them in the part.

    Raises:
      ValueError: labels are not two-dimensional, or fraction lies outside 0..1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction {fraction} lies outside 0..1")
    labels = np.asarray(labels)
    of_row = _positives(labels)
    in_part = round(len(labels) * fraction)
    sizes = np.array([len(labels) - in_part, in_part])
    side = np.array(_assign(of_row, labels.shape[1], [1 - fraction, fraction], sizes, seed, covering_part=0))
    return np.flatnonzero(side == 0), np.flatnonzero(side == 1)


def _positives(labels: np.ndarray) -> list[list[int]]:
    """The classes that each row is positive for."""
    if labels.ndim != 2:
        raise ValueError(f"labels must be [N, C], not {labels.shape}")
    rows, columns = np.nonzero(labels == 1)
    starts = np.searchsorted(rows, np.arange(len(labels) + 1)).tolist()
    columns = columns.tolist()
    return [columns[start:end] for start, end in pairwise(starts)]


def _assign(
    of_row: list[list[int]],
    num_labels: int,
    proportions: Sequence[float],
    sizes: np.ndarray,
    seed: int,
    covering_part: int | None,
) -> list[int]:
    """The part of each row, for sizes int64 [K] that add up to all rows; see stratified_parts.

    `of_row` may name num_labels and num_labels + 1 too, the classes of rows without a positive; they go first.
    """
    num_rows, num_parts = len(of_row), len(sizes)
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_rows).tolist()
    # Below a multiple of 1..20, so that the remainder by a number of ties is as likely to be any of them.
    coin = iter(rng.integers(0, math.lcm(*range(1, min(num_parts, 20) + 1)), num_rows).tolist())

    # Plain lists: the loops below touch a few elements at a time, where numpy is ten times slower.
    of_label = [[] for _ in range(num_labels + 2)]
    for row in order:
        for label in of_row[row]:
            of_label[label].append(row)
    left = [len(rows) for rows in of_label]
    room = sizes.tolist()
    wanted = [[count * share for share in proportions] for count in left]
    home = [None] * len(left)  # the part that holds all positives so far; -1 for several
    part_of = [-1] * num_rows

    def assign(row: int, to: int) -> None:
        part_of[row] = to
        room[to] -= 1
        for label in of_row[row]:
            wanted[label][to] -= 1
            left[label] -= 1
            home[label] = to if home[label] in (None, to) else -1

    def choose(row: int, label: int) -> int:
        parts = [part for part in range(num_parts) if room[part]]
        if covering_part is None:  # the last positive of a class must not join all the others
            full = {home[other] for other in of_row[row] if left[other] == 1}
            parts = [part for part in parts if part not in full] or parts if full else parts
        want = wanted[label]
        best = max((want[part], room[part]) for part in parts)
        ties = [part for part in parts if (want[part], room[part]) == best]
        return ties[0] if len(ties) == 1 else ties[next(coin) % len(ties)]

    if covering_part is not None:
        for label in sorted(range(num_labels), key=left.__getitem__):
            rows = of_label[label]
            if len(rows) >= 2 and covering_part not in map(part_of.__getitem__, rows) and room[covering_part]:
                assign(rows[0], covering_part)
    while any(left):
        label = min((label < num_labels, count, label) for label, count in enumerate(left) if count)[2]
        for row in of_label[label]:
            if part_of[row] < 0:
                assign(row, choose(row, label))
    for row in order:
        if part_of[row] < 0:
            assign(row, next(part for part in range(num_parts) if room[part]))
    return part_of


def _even_out(of_row: list[list[int]], num_labels: int, proportions: Sequence[float], part_of: list[int]) -> None:
    """Exchange rows that differ in one class alone, in `part_of`, while that brings the class nearer to its share.

    The most frequent classes are assigned last, where room is left, and may miss their share by many rows.
    """
    holds = np.zeros((num_labels + 2, len(proportions)))
    alike: dict[tuple[int, ...], dict[int, list[int]]] = {}  # {classes of a row: {part: its rows of just these}}
    for row, part in enumerate(part_of):
        holds[of_row[row], part] += 1
        alike.setdefault(tuple(of_row[row]), {}).setdefault(part, []).append(row)
    wanted = (holds.sum(1, keepdims=True) * proportions - holds).tolist()
    for classes, owners in alike.items():
        for label in classes:
            want = wanted[label]
            lacking = alike.get(tuple(other for other in classes if other != label)) if min(want) <= -1 else None
            for part in sorted(owners, key=want.__getitem__) if lacking else ():
                # A part gives away only rows beyond its share, so none loses its last positive.
                while owners[part] and want[part] <= -1:
                    to = max((other for other in lacking if lacking[other]), key=want.__getitem__, default=part)
                    if want[to] - want[part] <= 1:
                        break
                    row, other = owners[part].pop(), lacking[to].pop()
                    part_of[row], part_of[other] = to, part
                    owners.setdefault(to, []).append(row)
                    lacking.setdefault(part, []).append(other)
                    want[part] += 1
                    want[to] -= 1
