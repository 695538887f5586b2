"""How a run decides, as `Run.predict` does without arguments: by its decoder, a learned rule, thresholds or logit 0."""

import dataclasses
from pathlib import Path

import numpy as np

from jaxmlic.evaluation import decision, thresholds
from jaxmlic.models.heads.contract import Prediction
from jaxmlic.run.restored import RestoredRun


@dataclasses.dataclass(frozen=True)
class Deciding:
    """What decides, and what calibrates.

    Attributes:
      by_decoder: whether the head chooses the labels itself.
      rule: what was learned for the checkpoint; a decoder leaves it out of use.
      thresholds: what was fitted for the checkpoint; beside a decoder they only calibrate.
      notes: what is left out of use, and why.
    """

    by_decoder: bool
    rule: decision.Decision | None
    thresholds: thresholds.Thresholds | None
    notes: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What decides."""
        if self.by_decoder:
            return "decoder"
        return "rule" if self.rule else "thresholds" if self.thresholds else "probability 0.5"

    @property
    def file(self) -> str | None:
        """The name of what `save` writes."""
        return decision.FILE if self.rule else thresholds.FILE if self.thresholds else None

    @property
    def calibration(self) -> str | None:
        """Of the probabilities."""
        return "pooled" if self.rule else self.thresholds.calibration if self.thresholds else None

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """[N, C]: their sigmoids are the probabilities; calibrated where something is."""
        if self.rule:
            return self.rule.calibration.logits(scores)
        return self.thresholds.calibrated(scores) if self.thresholds else scores

    def save(self, folder: Path) -> None:
        """Writes the rule, without the ids of the images that it was learned on, or the thresholds."""
        if self.rule:
            decision.save(folder, dataclasses.replace(self.rule, ids=np.array([], str)))
        elif self.thresholds:
            thresholds.save(folder, self.thresholds)

    def choose(self, prediction: Prediction) -> np.ndarray:
        """bool [N, C], of a prediction of the run's head."""
        if self.by_decoder:
            return np.asarray(prediction.chosen)
        scores = np.asarray(prediction.scores)
        if self.rule:
            return self.rule.choose(scores)
        return scores >= np.asarray(self.thresholds.values if self.thresholds else 0.0, np.float32)


def of_run(run: RestoredRun) -> Deciding:
    """Of the checkpoint in use; what belongs to another one is left out, with a note."""
    rule, old = run.learned_decision()
    fitted, stale = run.fitted_thresholds() if rule is None else (None, "")
    notes = [f"{why}. Left out: labels are decided from 0.5 up" for why in (old, stale) if why]
    if rule and run.chooses_labels:
        rule, notes = None, [f"the decoder chooses the labels: {decision.FILE} is left out"]
    return Deciding(run.chooses_labels, rule, fitted, tuple(notes))
