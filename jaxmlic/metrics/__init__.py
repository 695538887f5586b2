"""Multi-label metrics under named protocols, in numpy only; see `protocols` for what a protocol is."""

from jaxmlic.metrics.ap import average_precision
from jaxmlic.metrics.paths import path_metrics
from jaxmlic.metrics.protocols import PROTOCOLS, Protocol, get_protocol
from jaxmlic.metrics.report import Decisions, decisions, evaluate, predicted_labels, top_k
from jaxmlic.metrics.thresholds import best_threshold

__all__ = [
    "PROTOCOLS",
    "Decisions",
    "Protocol",
    "average_precision",
    "best_threshold",
    "decisions",
    "evaluate",
    "get_protocol",
    "path_metrics",
    "predicted_labels",
    "top_k",
]
