"""Arithmetic on label matrices int8 [N, C] in {1 present, 0 absent, -1 unknown}: counts and splits."""

import numpy as np


def counts(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each class is present, absent and unknown: three int64 [C] from labels int8 [N, C]."""
    labels = np.asarray(labels)
    present = np.count_nonzero(labels == 1, axis=0)
    unknown = np.count_nonzero(labels == -1, axis=0)
    return present, len(labels) - present - unknown, unknown


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows so that every class is divided in the same proportion (as nearly as whole rows allow).

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011, Algorithm 1) for two parts: the class with the
    fewest rows left goes first, each of its rows to the part that still wants most of that class. Two things are added:
    the sizes are exact, and every class with two or more positives keeps at least one of them in the rest, as long as
    the rest has room for one row a class. Unknown (-1) counts as not positive; rows without positives fill up at
    random.

    Args:
      labels: int8 [N, C] in {1, 0, -1}.
      fraction: of the rows that go to the part, 0..1.
      seed: of the order in which equal choices are made.

    Returns:
      (rest, part): sorted int64 row indices; together all rows, with round(N * fraction) of them in the part.

    Raises:
      ValueError: labels are not two-dimensional, or fraction lies outside 0..1.
    """
    positive = np.asarray(labels) == 1
    if positive.ndim != 2:
        raise ValueError(f"labels must be [N, C], not {positive.shape}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction {fraction} lies outside 0..1")
    num_rows, num_labels = positive.shape
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_rows)
    coin = iter(rng.integers(0, 2, num_rows).tolist())
    in_part = round(num_rows * fraction)

    # Plain lists: the loop below touches a few elements at a time, where numpy is ten times slower.
    found_rows, found_labels = np.nonzero(positive[order])
    of_row = [[] for _ in range(num_rows)]
    of_label = [[] for _ in range(num_labels)]
    for row, label in zip(order[found_rows].tolist(), found_labels.tolist(), strict=True):
        of_row[row].append(label)
        of_label[label].append(row)
    left = [len(rows) for rows in of_label]
    totals = list(left)
    size_wanted = [num_rows - in_part, in_part]  # index 0: the rest, 1: the part
    wanted = [[total * (1 - fraction) for total in totals], [total * fraction for total in totals]]
    side = [-1] * num_rows

    def assign(row: int, to: int) -> None:
        side[row] = to
        size_wanted[to] -= 1
        for label in of_row[row]:
            wanted[to][label] -= 1
            left[label] -= 1

    kept = [False] * num_labels
    for label in sorted(range(num_labels), key=totals.__getitem__):
        if totals[label] >= 2 and not kept[label] and size_wanted[0] > 0:
            row = of_label[label][0]
            assign(row, 0)
            for other in of_row[row]:
                kept[other] = True
    while any(left):
        label = min((count, label) for label, count in enumerate(left) if count)[1]
        for row in of_label[label]:
            if side[row] >= 0:
                continue
            rest, part = (wanted[0][label], size_wanted[0]), (wanted[1][label], size_wanted[1])
            to = next(coin) if rest == part else int(part > rest)
            assign(row, to if size_wanted[to] > 0 else 1 - to)
    for row in order.tolist():
        if side[row] < 0:
            assign(row, 0 if size_wanted[0] > 0 else 1)
    side = np.array(side)
    return np.flatnonzero(side == 0), np.flatnonzero(side == 1)
