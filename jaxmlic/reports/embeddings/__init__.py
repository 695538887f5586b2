"""Looking at label vectors: functions of arrays as `Run.label_embeddings` gives, and pictures of what they find."""

from jaxmlic.reports.embeddings.communities import communities, modularity
from jaxmlic.reports.embeddings.drawings import draw_agreement, draw_beside_data, draw_drift, draw_map
from jaxmlic.reports.embeddings.maps import METHODS, project
from jaxmlic.reports.embeddings.measures import (
    Agreement,
    BesideData,
    Drift,
    agreement,
    beside_data,
    drift,
    nearest_labels,
    neighbour_overlap,
    rank_correlation,
)

__all__ = [
    "METHODS",
    "Agreement",
    "BesideData",
    "Drift",
    "agreement",
    "beside_data",
    "communities",
    "draw_agreement",
    "draw_beside_data",
    "draw_drift",
    "draw_map",
    "drift",
    "modularity",
    "nearest_labels",
    "neighbour_overlap",
    "project",
    "rank_correlation",
]
