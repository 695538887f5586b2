"""A finished run as an object: the door for commands, notebooks and services."""

from jaxmlic.run.finished import Run, load
from jaxmlic.run.predicted import ImagePrediction, Pictures
from jaxmlic.run.scored import Evaluation, evaluation

__all__ = ["Evaluation", "ImagePrediction", "Pictures", "Run", "evaluation", "load"]
