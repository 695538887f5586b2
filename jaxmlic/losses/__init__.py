"""Losses of multi-label classification: per example [...] from logits and labels [..., C] in {1, 0, -1}."""

from jaxmlic.losses.pairwise import lsep, ramp, rmlc, warp
from jaxmlic.losses.partial import hill, partial_asymmetric, splc
from jaxmlic.losses.pointwise import (
    asymmetric,
    binary_cross_entropy,
    focal,
    softmax_cross_entropy,
    weighted_cross_entropy,
)

__all__ = [
    "asymmetric",
    "binary_cross_entropy",
    "focal",
    "hill",
    "lsep",
    "partial_asymmetric",
    "ramp",
    "rmlc",
    "softmax_cross_entropy",
    "splc",
    "warp",
    "weighted_cross_entropy",
]
