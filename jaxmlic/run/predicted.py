"""What a run is shown, and what it predicts of that."""

import dataclasses
from pathlib import Path

import numpy as np

from jaxmlic.models.heads import contract


@dataclasses.dataclass(frozen=True)
class ImagePrediction:
    """What a run predicts for one photograph.

    Attributes:
      file: the photograph.
      scores: float32 [C] logits.
      chosen: bool [C], the labels that are predicted.
      path: int32 [T], the labels in the order in which the head emitted them, padded with C; None without an order.
      trace: the head's steps (`contract.Trace` without the batch axis), where they were asked for.
    """

    file: Path
    scores: np.ndarray
    chosen: np.ndarray
    path: np.ndarray | None = None
    trace: contract.Trace | None = None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images as the model is given them.

    Attributes:
      names: N file names or ids.
      pixels: uint8 [N, S, S, 3].
      labels: int8 [N, C], the true ones; None for files.
    """

    names: list[str]
    pixels: np.ndarray
    labels: np.ndarray | None = None
