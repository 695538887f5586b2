"""Labels for unlabelled images from labelled ones near them, on a graph of nearest neighbours."""

from jaxmlic.propagation.graphs import cosine_graph, heat_kernel_graph, link_strength
from jaxmlic.propagation.methods import (
    PseudoLabels,
    by_frequency,
    class_weights,
    diffusion,
    improved_label_propagation,
)
from jaxmlic.propagation.neighbours import knn

__all__ = [
    "PseudoLabels",
    "by_frequency",
    "class_weights",
    "cosine_graph",
    "diffusion",
    "heat_kernel_graph",
    "improved_label_propagation",
    "knn",
    "link_strength",
]
