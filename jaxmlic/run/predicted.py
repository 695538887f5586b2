"""What a run is shown, and what it predicts of that."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxmlic.errors import UserError
from jaxmlic.models.heads import contract


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePrediction:
    """What a run predicts for one image.

    Attributes:
      file: the image's file, or "image 3" for the fourth that is no file.
      scores: float32 [C] logits.
      chosen: bool [C], the labels that are predicted.
      path: int32 [T], the labels in the order in which the head emitted them, padded with C; None without an order.
      trace: the head's steps (`contract.Trace` without the batch axis), where they were asked for.
    """

    file: str
    scores: np.ndarray
    chosen: np.ndarray
    path: np.ndarray | None = None
    trace: contract.Trace | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """What a run predicts for N images, in their order; files that could not be read are not among them.

    Attributes:
      files: N names: files, or "image 3" for the fourth image that is no file.
      class_names: C names, in the order of the scores.
      scores: float32 [N, C] logits.
      chosen: bool [N, C], the labels that are predicted.
      path: int32 [N, T], the labels in the order in which the head emitted them, padded with C; None without an order.
      unreadable: {file: why it could not be read}.
      threshold: the logit, or the logits [C], from which on a label is predicted; None where a decoder or a rule chose.
      traces: the head's steps of each image (`contract.Trace` without the batch axis), where they were asked for.
      calibrated: float64 [N, C], logits of the probabilities, where `jaxmlic thresholds` fitted a calibration.
    """

    files: list[str]
    class_names: list[str]
    scores: np.ndarray
    chosen: np.ndarray
    path: np.ndarray | None
    unreadable: dict[str, str]
    threshold: float | np.ndarray | None
    traces: list[contract.Trace] | None = None
    calibrated: np.ndarray | None = None

    @property
    def logits(self) -> np.ndarray:
        """[N, C]: the calibrated ones where there are any, else the scores."""
        return self.scores if self.calibrated is None else self.calibrated

    @property
    def probabilities(self) -> np.ndarray:
        """float32 [N, C]: sigmoid of `logits`."""
        return sigmoid(self.logits).astype(np.float32)

    @property
    def labels(self) -> list[list[str]]:
        """The names of each image's predicted labels, the most probable first."""
        order = np.argsort(-self.logits, axis=1, kind="stable")
        return [
            [self.class_names[i] for i in row if own[i]] for row, own in zip(order.tolist(), self.chosen, strict=True)
        ]

    @property
    def label_paths(self) -> list[list[str]] | None:
        """The names along `path`."""
        if self.path is None:
            return None
        count = len(self.class_names)
        return [[self.class_names[i] for i in row if i < count] for row in self.path.tolist()]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> ImagePrediction:
        path = None if self.path is None else self.path[number]
        trace = None if self.traces is None else self.traces[number]
        return ImagePrediction(self.files[number], self.scores[number], self.chosen[number], path, trace)

    def __iter__(self) -> Iterator[ImagePrediction]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        lines = [f"{len(self)} images"]
        if len(self):
            width = max(map(len, self.files))
            for file, labels, row in zip(self.files, self.labels, self.probabilities, strict=True):
                shown = ", ".join(f"{name} {row[self.class_names.index(name)]:.2f}" for name in labels)
                lines.append(f"{file:{width}}  {shown or '-'}")
        lines += [f"{file}: unreadable ({why})" for file, why in self.unreadable.items()]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Images as the model is given them.

    Attributes:
      names: N file names or ids.
      pixels: uint8 [N, S, S, 3].
      labels: int8 [N, C], the true ones; None for images that are given.
    """

    names: list[str]
    pixels: np.ndarray
    labels: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """Where a model looks in one image.

    Attributes:
      pixels: uint8 [S, S, 3], the image as the model is given it.
      maps: {name: float32 [h, w]}: of a stage, of a step ("1 person") or of a label. They cover the whole image.
      form: "weights" over positions, "steps" of a path, or "grad_cam" and "gradient" of labels' scores.
    """

    pixels: np.ndarray
    maps: dict[str, np.ndarray]
    form: str


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Logits -> probabilities float64 without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(scores, np.float64)))


def logit_of(probability: float | np.ndarray) -> float | np.ndarray:
    """Of thresholds between 0 and 1; UserError for others."""
    values = np.asarray(probability, np.float64)
    if not ((values > 0) & (values < 1)).all():
        raise UserError(
            f"threshold = {probability}: a probability between 0 and 1 (0.5 is the logit 0); a logit goes into logit="
        )
    found = np.log(values / (1 - values))
    return float(found) if found.ndim == 0 else found
