"""What a run scored on a split."""

import dataclasses

import numpy as np

from jaxmlic import metrics
from jaxmlic.evaluation import scoring
from jaxmlic.evaluation.decision import Decision
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.evaluation.thresholds import Thresholds
from jaxmlic.models.heads import contract
from jaxmlic.training import run_folder


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a run scored on a split: the score file's content, and `metrics.evaluate` under one protocol."""

    scores: ScoreFile
    numbers: dict


def evaluation(
    record: run_folder.RunRecord,
    step: int,
    scored: tuple[contract.Prediction, np.ndarray, np.ndarray],
    split: str,
    protocol: str,
    trained: np.ndarray | None,
    thresholds: Thresholds | None = None,
    rule: Decision | None = None,
) -> Evaluation:
    """What a run's scores are worth.

    Args:
      record: of the run.
      step: of the checkpoint that scored.
      scored: prediction (numpy), labels int8 [N, C] and ids [N].
      split: where these examples come from.
      protocol: a name that `metrics.get_protocol` knows.
      trained: bool [C], the classes with a positive in the training split, where the config counts no others.
      thresholds: what decides, in place of the logit 0.
      rule: what chose the labels, under a learned protocol.
    """
    prediction, labels, ids = scored
    rules = {"protocol": protocol} | ({} if thresholds is None else {"threshold": thresholds.values})
    numbers = scoring.report(record.config, prediction, labels, trained, **rules)
    extra: dict[str, object] = {"step": step}
    if prediction.path is not None:  # a reader of the score file has no paths
        extra["paths"] = metrics.path_metrics(np.asarray(prediction.path), labels)
    if trained is not None:  # a reader of the score file cannot know the training split
        extra["untrained_classes"] = np.array(record.class_names)[~trained].tolist()
    if thresholds is not None:
        extra["thresholds"] = {name: getattr(thresholds, name) for name in ("objective", "split", "step")}
    if rule is not None:
        extra["rule"] = rule.facts()
    scores = ScoreFile(
        scores=np.asarray(prediction.scores, np.float32),
        labels=labels,
        ids=ids,
        class_names=record.class_names,
        config=record.config.to_dict(),
        protocol=numbers["protocol"],
        split=split,
        threshold=numbers["threshold"],
        chosen=None if prediction.chosen is None else np.asarray(prediction.chosen),
        extra=extra,
    )
    return Evaluation(scores, numbers)
