"""A finished run as an object: the door for commands, notebooks and services."""

from jaxmlic.run.finished import Run, load
from jaxmlic.run.given import find_images
from jaxmlic.run.predicted import Attention, ImagePrediction, Pictures, Predictions
from jaxmlic.run.scored import Evaluation, evaluation

__all__ = [
    "Attention",
    "Evaluation",
    "ImagePrediction",
    "Pictures",
    "Predictions",
    "Run",
    "evaluation",
    "find_images",
    "load",
]
