"""What label vectors say: nearest labels, beside the data's co-occurrence, beside other heads, over checkpoints.

Closeness is the cosine throughout, so that tables of other widths and scales can be compared; no table is rotated.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmlic.errors import UserError
from jaxmlic.labels import graph
from jaxmlic.labels.neighbours import nearest, unit


def nearest_labels(
    queries: np.ndarray, vectors: np.ndarray, names: Sequence[str], k: int = 5, own: np.ndarray | None = None
) -> list[list[tuple[str, float]]]:
    """The k labels nearest to each query and their cosines: Table 5 of CNN-RNN for labels, Fig. 9 for images.

    Args:
      queries: [N, D], labels' vectors or images' in the same space.
      vectors: [C, D], the labels'.
      names: [C].
      k: neighbours.
      own: int [N], the label of each query, which is left out; None for images.
    """
    order, cosines = nearest(queries, vectors, k, own)
    return [[(names[i], float(c)) for i, c in zip(*row, strict=True)] for row in zip(order, cosines, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class BesideData:
    """Label vectors beside how often labels occur together.

    Attributes:
      cosines: float64 [C, C], of the vectors.
      association: float64 [C, C], normalised pointwise mutual information in 0..1 (`graph.association`, "pmi").
      correlation: Spearman's, over the pairs of labels that both occur.
      closer: the pairs (name, name, cosine, association) whose vectors are closer than the data says, the worst first.
      further: those whose vectors are further apart than the data says.
    """

    cosines: np.ndarray
    association: np.ndarray
    correlation: float
    closer: list[tuple[str, str, float, float]]
    further: list[tuple[str, str, float, float]]


def beside_data(vectors: np.ndarray, labels: np.ndarray, names: Sequence[str], count: int = 5) -> BesideData:
    """Label vectors [C, D] beside labels int8 [N, C] in {1, 0, -1}.

    Two labels disagree by the difference of their two ranks among all pairs of labels that occur. `count`: of the pairs
    that are named in either direction. UserError for fewer than three labels that occur.
    """
    counts, num_positive = graph.cooccurrence(labels)
    association = graph.association(counts, num_positive, "pmi")
    cosines = unit(vectors) @ unit(vectors).T
    occurs = num_positive > 0
    if occurs.sum() < 3:
        raise UserError(f"{occurs.sum()} labels occur; with three or more there are pairs to rank")
    first, second = np.nonzero(np.triu(occurs[:, None] & occurs[None], 1))
    ranks = [_ranks(values[first, second]) for values in (cosines, association)]
    gaps = ranks[0] - ranks[1]
    order = np.argsort(-gaps, kind="stable")

    def named(chosen: np.ndarray) -> list[tuple[str, str, float, float]]:
        pairs = zip(first[chosen], second[chosen], strict=True)
        return [(names[i], names[j], float(cosines[i, j]), float(association[i, j])) for i, j in pairs]

    closer = order[:count][gaps[order[:count]] > 0]
    further = order[::-1][:count][gaps[order[::-1][:count]] < 0]
    return BesideData(cosines, association, _pearson(*ranks), named(closer), named(further))


def neighbour_overlap(first: np.ndarray, second: np.ndarray, k: int = 5) -> np.ndarray:
    """float64 [C]: the share of each label's k nearest ones that two tables [C, D] and [C, E] have in common.

    By chance it is k / (C - 1).
    """
    own = np.arange(len(first))
    rows = [nearest(table, table, k, own)[0] for table in (first, second)]
    return np.array([len(np.intersect1d(a, b)) / len(a) for a, b in zip(*rows, strict=True)])


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, of the cosines of all pairs of labels in two tables [C, D] and [C, E]; NaN where all are equal."""
    pairs = np.triu_indices(len(first), 1)
    return _pearson(*(_ranks((unit(table) @ unit(table).T)[pairs]) for table in (first, second)))


@dataclasses.dataclass(frozen=True, eq=False)
class Agreement:
    """Tables of several heads side by side, H of them.

    Attributes:
      names: H.
      overlap: float64 [H, H], the mean `neighbour_overlap`.
      correlation: float64 [H, H], `rank_correlation`.
      k: neighbours that were compared.
      chance: the overlap of unrelated tables.
    """

    names: list[str]
    overlap: np.ndarray
    correlation: np.ndarray
    k: int
    chance: float


def agreement(tables: Mapping[str, np.ndarray], k: int = 5) -> Agreement:
    """{name: [C, D]}, of the same labels in the same order; UserError for another number of labels."""
    sizes = {len(table) for table in tables.values()}
    if len(sizes) != 1:
        raise UserError(f"tables of {', '.join(map(str, sorted(sizes)))} labels: give tables of the same labels")
    labels, pairs = sizes.pop(), len(tables)
    k = min(k, labels - 1)
    rows = list(tables.values())
    overlap, correlation = np.ones((pairs, pairs)), np.ones((pairs, pairs))
    for i in range(pairs):
        for j in range(i):
            overlap[i, j] = overlap[j, i] = neighbour_overlap(rows[i], rows[j], k).mean()
            correlation[i, j] = correlation[j, i] = rank_correlation(rows[i], rows[j])
    return Agreement(list(tables), overlap, correlation, k, k / (labels - 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Drift:
    """One table at T checkpoints, each beside the last.

    Attributes:
      steps: T.
      cosines: float64 [T, C], of each label's vector with its own at the last checkpoint.
      lengths: float64 [T, C], of the vectors.
      overlap: float64 [T], the mean `neighbour_overlap` with the last checkpoint.
      correlation: float64 [T], `rank_correlation` with the last checkpoint.
    """

    steps: list[int]
    cosines: np.ndarray
    lengths: np.ndarray
    overlap: np.ndarray
    correlation: np.ndarray


def drift(tables: Mapping[int, np.ndarray], k: int = 5) -> Drift:
    """{step: [C, D]} of the checkpoints of one run."""
    steps = sorted(tables)
    rows = [np.asarray(tables[step], np.float64) for step in steps]
    last = unit(rows[-1])
    return Drift(
        steps,
        np.array([(unit(row) * last).sum(axis=1) for row in rows]),
        np.array([np.linalg.norm(row, axis=1) for row in rows]),
        np.array([neighbour_overlap(row, rows[-1], k).mean() for row in rows]),
        np.array([rank_correlation(row, rows[-1]) for row in rows]),
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # slow to import

    return rankdata(np.round(values, 9))  # equal but for rounding are equal


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > 0 else float("nan")
