"""Communities of labels that occur together: greedy modularity (Clauset, Newman and Moore, 2004)."""

import numpy as np

from jaxmlic.labels import graph


def communities(labels: np.ndarray) -> np.ndarray:
    """int [C]: the community of each label, 0 the largest, of labels int8 [N, C] in {1, 0, -1}.

    The graph's weights are the normalised pointwise mutual information of pairs, so that a label of most images does
    not hold all others together. A label that occurs with no other is a community of its own.
    """
    return greedy(graph.association(*graph.cooccurrence(labels), "pmi"))


def greedy(weights: np.ndarray) -> np.ndarray:
    """int [C]: communities of a graph with symmetric weights >= 0 [C, C], 0 the largest; the diagonal is left out.

    Of all pairs of communities the one is joined that raises the modularity most, as long as one does.
    """
    weights = np.array(weights, np.float64)
    np.fill_diagonal(weights, 0)
    count, total = len(weights), weights.sum()
    own = np.arange(count)
    if total > 0:
        between = weights / total  # [C, C], shares of the weight between two communities
        degree = between.sum(axis=1)
        np.fill_diagonal(between, -np.inf)  # nothing is joined with itself, nor with what was joined already
        while True:
            gain = 2 * (between - degree[:, None] * degree[None])
            kept, joined = sorted(np.unravel_index(np.argmax(gain), gain.shape))
            if not gain[kept, joined] > 1e-12:
                break
            between[kept] += between[joined]
            between[:, kept] = between[kept]
            degree[kept] += degree[joined]
            between[joined] = between[:, joined] = between[kept, kept] = -np.inf
            own[own == joined] = kept
    names, sizes = np.unique(own, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    return np.argsort(order)[np.searchsorted(names, own)]


def modularity(weights: np.ndarray, own: np.ndarray) -> float:
    """Q of communities int [C] in a graph with symmetric weights [C, C], without the diagonal; NaN without weights."""
    weights = np.array(weights, np.float64)
    np.fill_diagonal(weights, 0)
    total, degree = weights.sum(), weights.sum(axis=1)
    if not total > 0:
        return float("nan")
    same = own[:, None] == own[None]
    return float(((weights / total - degree[:, None] * degree[None] / total**2) * same).sum())
