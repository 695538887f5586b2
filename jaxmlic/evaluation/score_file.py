"""The score file: a model's scores of a split, with all that is needed to judge it.

Evaluate writes it; ensemble, compare and report read it. An `.npz` without pickles: `scores` float32 [N, C], `labels`
int8 [N, C] in {1, 0, -1}, `ids` and `class_names` as text arrays, `config` and `extra` as JSON text, `protocol` and
`split` as text; `threshold` (float64, one or [C]) and `chosen` (bool [N, C]) if there are any.
"""

import dataclasses
import json
import os
from typing import Any

import numpy as np

from jaxmlic import metrics, storage
from jaxmlic.errors import UserError

_NEEDED = ("scores", "labels", "ids", "class_names", "config", "protocol", "split", "extra")
_REMEDY = "write it again with `jaxmlic evaluate`"


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreFile:
    """Scores of one model on one split; N examples in the order of the split, C classes.

    Attributes:
      scores: float32 [N, C], logits or probabilities, no NaN. Other float dtypes are converted.
      labels: int8 [N, C] in {1, 0, -1}. Other integer dtypes are converted.
      ids: str [N].
      class_names: C distinct names, in the order of the columns.
      config: the run's configuration, anything JSON can hold.
      protocol: name of the protocol that the run reports by.
      split: name of the split.
      threshold: decision threshold on the scale of the scores, one or float64 [C]; None for the protocol's own.
      chosen: bool [N, C], what a decoder emitted or, under a learned protocol, a rule chose; or None.
      extra: further facts, anything JSON can hold.

    Raises:
      ValueError: shapes, dtypes or values are wrong.
    """

    scores: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    class_names: list[str]
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    protocol: str = "all_point"
    split: str = ""
    threshold: float | np.ndarray | None = None
    chosen: np.ndarray | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        scores, labels, ids = np.asarray(self.scores), np.asarray(self.labels), np.asarray(self.ids)
        names = [str(name) for name in self.class_names]
        if scores.ndim != 2 or scores.dtype.kind in "biucUSOMm":
            raise ValueError(f"scores must be float [N, C], not {scores.dtype} {list(scores.shape)}")
        scores = scores.astype(np.float32, copy=False)
        if np.isnan(scores).any():
            row, column = np.argwhere(np.isnan(scores))[0]
            raise ValueError(f"score is NaN at row {row}, column {column}")
        if labels.shape != scores.shape or labels.dtype.kind not in "biu":
            raise ValueError(f"labels must be int8 {list(scores.shape)}, not {labels.dtype} {list(labels.shape)}")
        if labels.size and (labels.min() < -1 or labels.max() > 1):
            raise ValueError(f"labels must be in {{1, 0, -1}}, but range from {labels.min()} to {labels.max()}")
        if ids.shape != (len(scores),):
            raise ValueError(f"ids must be one for each of the {len(scores)} rows of scores, not {list(ids.shape)}")
        if len(names) != scores.shape[1]:
            raise ValueError(f"{len(names)} class names for {scores.shape[1]} columns of scores")
        if len(set(names)) != len(names):
            raise ValueError(f"class name {next(n for n in names if names.count(n) > 1)!r} occurs twice")
        chosen = None if self.chosen is None else np.asarray(self.chosen)
        if chosen is not None and (chosen.dtype != bool or chosen.shape != scores.shape):
            raise ValueError(f"chosen must be bool {list(scores.shape)}, not {chosen.dtype} {list(chosen.shape)}")
        threshold = None if self.threshold is None else np.asarray(self.threshold, np.float64)
        if threshold is not None:
            if threshold.shape not in ((), (len(names),)):
                raise ValueError(f"threshold must be one or {len(names)} numbers, not {list(threshold.shape)}")
            if np.isnan(threshold).any():
                raise ValueError("threshold is NaN")
            threshold = threshold if threshold.ndim else float(threshold)
        normal = {"scores": scores, "labels": labels.astype(np.int8, copy=False), "ids": ids.astype(str)}
        for name, value in {**normal, "class_names": names, "chosen": chosen, "threshold": threshold}.items():
            object.__setattr__(self, name, value)

    def decides(self, protocol: str) -> bool:
        """Whether scores and `chosen` suffice for a protocol: labels of a decoder and of a rule are not the same."""
        wanted, own = metrics.get_protocol(protocol), metrics.get_protocol(self.protocol)
        if not wanted.needs_chosen:
            return True
        if wanted.by_rule:
            return self.chosen is not None and (wanted.decision, wanted.k) == (own.decision, own.k)
        return self.chosen is not None and not own.by_rule


def save(path: str | os.PathLike, score_file: ScoreFile) -> None:
    """Writes `path` whole or not at all; makes missing folders.

    Raises:
      TypeError: config or extra cannot be written as JSON.
      UserError: the file cannot be written.
    """
    arrays = {
        "scores": score_file.scores,
        "labels": score_file.labels,
        "ids": score_file.ids,
        "class_names": np.array(score_file.class_names, dtype=str),
        "config": np.array(json.dumps(score_file.config, sort_keys=True)),
        "protocol": np.array(score_file.protocol),
        "split": np.array(score_file.split),
        "extra": np.array(json.dumps(score_file.extra, sort_keys=True)),
    }
    if score_file.threshold is not None:
        arrays["threshold"] = np.array(score_file.threshold, np.float64)
    if score_file.chosen is not None:
        arrays["chosen"] = score_file.chosen
    storage.save_npz(path, arrays, compress=False)


def load(path: str | os.PathLike) -> ScoreFile:
    """Reads a score file. Nothing in it is ever unpickled.

    Raises:
      UserError: the file is missing, damaged, lacks an entry, or holds wrong shapes or values.
    """
    arrays = storage.load_npz(path, _NEEDED, ("threshold", "chosen"), what="score file", remedy=_REMEDY)
    try:
        return ScoreFile(
            scores=arrays["scores"],
            labels=arrays["labels"],
            ids=arrays["ids"],
            class_names=arrays["class_names"].tolist(),
            config=json.loads(str(arrays["config"][()])),
            protocol=str(arrays["protocol"][()]),
            split=str(arrays["split"][()]),
            threshold=arrays.get("threshold"),
            chosen=arrays.get("chosen"),
            extra=json.loads(str(arrays["extra"][()])),
        )
    except (ValueError, TypeError) as error:  # json.JSONDecodeError is a ValueError
        raise UserError(f"{path}: not a valid score file ({storage.reason(error)}); {_REMEDY}") from error
