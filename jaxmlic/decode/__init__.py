"""Label paths from a step callback, greedily or by beam search, and the scores that rank labels by them."""

from jaxmlic.decode.ranking import labels_on, max_over_steps, path_marginals
from jaxmlic.decode.search import START, StepFn, along_path, beam_search, greedy, rescore

__all__ = [
    "START",
    "StepFn",
    "along_path",
    "beam_search",
    "greedy",
    "labels_on",
    "max_over_steps",
    "path_marginals",
    "rescore",
]
