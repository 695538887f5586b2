"""Labels for unlabelled images from labelled ones near them, on a graph of nearest neighbours."""

from jaxmlic.propagation.decision import (
    WEIGHTS,
    PseudoLabels,
    by_frequency,
    class_weights,
    leave_unknown,
    weigh,
)
from jaxmlic.propagation.graphs import cosine_graph, heat_kernel_graph, link_strength
from jaxmlic.propagation.methods import diffusion, improved_label_propagation, soft_label_propagation
from jaxmlic.propagation.neighbours import knn

__all__ = [
    "WEIGHTS",
    "PseudoLabels",
    "by_frequency",
    "class_weights",
    "cosine_graph",
    "diffusion",
    "heat_kernel_graph",
    "improved_label_propagation",
    "knn",
    "leave_unknown",
    "link_strength",
    "soft_label_propagation",
    "weigh",
]
