"""Classifiers without training steps, as pure functions: kernel ridge regression, with exact scores of held-out images.

    embedding = fit_embedding(descriptors, weights, unit=True)
    points = embed(embedding, descriptors)
    found = select(points, labels, folds_of(len(points), 9, seed=0), "exp", bandwidths, ridges)
    dual = ridge.fit(points, targets(labels), "exp", found.bandwidth, found.ridge)

Images are points [N, D]. `ridge` holds one matrix N x N at a time, `nystrom` none.
"""

from jaxmlic.kernels.functions import KERNELS, kernel, product
from jaxmlic.kernels.points import Embedding, embed, fit_embedding

__all__ = ["KERNELS", "Embedding", "embed", "fit_embedding", "kernel", "product"]
