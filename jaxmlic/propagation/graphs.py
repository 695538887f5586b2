"""The sparse graphs that labels are propagated on: weights of edges between nearest neighbours, and link strength."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import sparse

from jaxmlic import sharding

_ROWS = 256  # rows of a sparse product that are held at a time


def heat_kernel_graph(
    indices: np.ndarray, squared_distances: np.ndarray, bandwidth: float | None = None
) -> sparse.csr_array:
    """Weights exp(-d^2 / t) on the edges between a point and its neighbours, in both directions.

    Args:
      indices: int [N, K]; -1 (the search found fewer) and the point itself make no edge.
      squared_distances: [N, K], not negative.
      bandwidth: t; None for the mean squared distance to a neighbour, which makes the graph independent of the
        features' scale.

    Returns:
      float64 [N, N], symmetric, with an empty diagonal.

    Raises:
      ValueError: shapes that do not fit, or a bandwidth that is not above 0.
    """
    rows, columns, squared = _edges(indices, squared_distances)
    if bandwidth is None:
        bandwidth = float(squared.mean()) if squared.any() else 1.0  # all distances are 0: any bandwidth will do
    if not bandwidth > 0:
        raise ValueError(f"bandwidth {bandwidth} is not above 0")
    weights = np.exp(-np.minimum(squared / bandwidth, 700))  # a weight of 0 would be no edge
    half = sparse.csr_array((weights, (rows, columns)), shape=(len(indices),) * 2)
    return half.maximum(half.T).tocsr()


def cosine_graph(indices: np.ndarray, cosines: np.ndarray, power: float = 3.0) -> sparse.csr_array:
    """W + W' with W_ij = max(cosine, 0)^power for j among the neighbours of i (eq 9 of Iscen et al., gamma = 3).

    Args:
      indices: int [N, K]; -1 and the point itself make no edge.
      cosines: [N, K].
      power: gamma.

    Returns:
      float64 [N, N], symmetric, with an empty diagonal.

    Raises:
      ValueError: shapes that do not fit.
    """
    rows, columns, cosines = _edges(indices, cosines)
    positive = cosines > 0
    weights = cosines[positive] ** power
    half = sparse.csr_array((weights, (rows[positive], columns[positive])), shape=(len(indices),) * 2)
    return (half + half.T).tocsr()


def link_strength(graph: sparse.csr_array) -> sparse.csr_array:
    r"""Eq 1 of MSCNN-LCE-MIC on the edges, over the neighbours that two images share.

    .. math:: \sum_{C \in N(A) \cap N(B)} w(A, C) + w(C, B)

    Args:
      graph: weights [N, N], symmetric, above 0, with an empty diagonal.

    Returns:
      float64 [N, N], symmetric; an edge without a shared neighbour has no strength.
    """
    graph = sparse.csr_array(graph)
    edges = graph.copy()
    edges.data = np.ones_like(edges.data)

    # In blocks of rows: the whole product, before the mask, has about k times as many entries as the graph.
    def sum_over_shared(start: int) -> sparse.csr_array:
        return (graph[start : start + _ROWS] @ edges).multiply(edges[start : start + _ROWS])

    with ThreadPoolExecutor(sharding.cores()) as pool:
        product = sparse.vstack(list(pool.map(sum_over_shared, range(0, graph.shape[0], _ROWS))), format="csr")
    return (product + product.T).tocsr()


def _edges(indices: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value (float64) of each edge."""
    indices, values = np.asarray(indices), np.asarray(values)
    if indices.ndim != 2 or indices.shape != values.shape:
        raise ValueError(f"indices {indices.shape} and values {values.shape} are not both [N, K]")
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    columns = indices.ravel()
    valid = (columns >= 0) & (columns != rows)
    return rows[valid], columns[valid], values.ravel()[valid].astype(np.float64)
