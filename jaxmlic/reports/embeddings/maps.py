"""Label vectors on a plane: PCA, t-SNE or UMAP."""

import warnings

import numpy as np

from jaxmlic.errors import UserError, unknown
from jaxmlic.labels.neighbours import unit

METHODS = ("pca", "tsne", "umap")


def project(vectors: np.ndarray, method: str = "pca", seed: int = 0, neighbours: int = 5) -> tuple[np.ndarray, str]:
    """Points float64 [C, 2] of label vectors [C, D], of which the direction counts and not the length; and a caption.

    Args:
      vectors: one row a label.
      method: "pca", the plane of most variance, which keeps distances as far as a plane can; "tsne" and "umap", which
        keep neighbours: there distances between groups mean little.
      seed: of t-SNE and UMAP.
      neighbours: the perplexity of t-SNE, and the neighbours of UMAP; at most a third of the labels.

    Raises UserError for fewer than three labels, an unknown method, and one whose package is not installed.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    rows = unit(vectors)
    if len(rows) < 3:
        raise UserError(f"{len(rows)} labels: a map needs three")
    centred = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    plane = (left * values)[:, :2]
    plane = np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    plane *= np.where(plane[np.argmax(np.abs(plane), axis=0), [0, 1]] < 0, -1, 1)  # one of the two signs
    if method == "pca":
        share = (values[:2] ** 2).sum() / max((values**2).sum(), np.finfo(np.float64).tiny)
        return plane, f"PCA, {100 * share:.0f}% of the variance"
    neighbours = max(2, min(neighbours, (len(rows) - 1) // 3))
    # Both start from the plane of PCA, so that a run with another seed lies alike.
    start = (plane / max(plane[:, 0].std(), np.finfo(np.float64).tiny)).astype(np.float32)
    if method == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            raise UserError("t-SNE needs scikit-learn: pip install 'jaxmlic[notebook]'") from None
        found = TSNE(perplexity=neighbours, init=1e-4 * start, metric="cosine", random_state=seed).fit_transform(rows)
        return found.astype(np.float64), f"t-SNE, perplexity {neighbours}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its compiler, and of threads that a seed rules out
        try:
            from umap import UMAP
        except ImportError:
            raise UserError("UMAP needs umap-learn: pip install 'jaxmlic[notebook]'") from None
        found = UMAP(n_neighbors=neighbours, init=10 * start, metric="cosine", random_state=seed).fit_transform(rows)
    return np.asarray(found, np.float64), f"UMAP, {neighbours} neighbours"
