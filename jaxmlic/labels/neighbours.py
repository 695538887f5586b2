"""Nearest vectors by the cosine: labels among labels, labels near an image."""

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """float64 [N, E] of length one; rows of zeros stay zeros."""
    vectors = np.asarray(vectors, np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def nearest(
    queries: np.ndarray, vectors: np.ndarray, count: int = 5, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `vectors` [C, E] with the highest cosine to each of `queries` [N, E]: int [N, k], and the cosines.

    own: int [N], a row that is left out for each query, itself. A vector of zeros has the cosine 0 with all.
    """
    cosines = unit(queries) @ unit(vectors).T  # [N, C]
    if own is not None:
        cosines[np.arange(len(own)), own] = -np.inf
    count = min(count, len(vectors) - (own is not None))
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(cosines, order, axis=1)
