"""A rule that decides labels for the number that is reported, learned on training images and kept with the run.

`decision.json` in the run folder: the calibration that makes probabilities of the model's scores, the rule's scale and
offset of each class, what they were learned for and on, what they are worth on images that were held out, and for
which checkpoint. It stands in place of thresholds.json: a run has one way of deciding.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmlic import metrics, storage
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.evaluation import thresholds
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.labels.names import check_same_classes
from jaxmlic.metrics import affine_rules
from jaxmlic.metrics.affine_rules import Rule
from jaxmlic.metrics.pooled_calibration import PooledCalibration, fit_pooled

FILE = "decision.json"
_FOLDS = (3, 9)  # at least and at most
POWERS = (0.2, 0.3, 0.4, 0.5, 0.6)
SHOWN = ("CP", "CR", "CF1", "N+", "OF1")
_REMEDY = "learn it again with `jaxmlic thresholds`"
PLAIN, CALIBRATED, POWER, LEARNED, BATCH = (
    "scores",
    "calibrated",
    "calibrated / frequency^a",
    "learned rule",
    "transductive",
)


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a rule is learned for.

    Attributes:
      description: one line for people.
      fit: (probabilities [N, C], goal, images of a batch) -> rule.
      whole: (goal) -> whether the goal is allowed.
      needs: what the goal is; "" for none.
      number: the metric's own name in reports.
      batch: whether knowing the whole batch changes the decision.
    """

    description: str
    fit: Callable[[np.ndarray, float, int], Rule]
    whole: Callable[[float], bool]
    needs: str
    number: str
    batch: bool


METRICS = {
    "cf1_at": Metric(
        "F1 of mean precision and mean recall at exactly K labels an image, as on Corel-5K",
        lambda p, k, images: affine_rules.fit_means(p, int(k), images)[0],
        lambda k: k >= 1 and k == int(k),
        "K labels, a whole number from 1 up",
        "CF1",
        True,
    ),
    "cf1": Metric(
        "F1 of mean precision and mean recall, any number of labels",
        lambda p, _, images: affine_rules.fit_means(p, None, images)[0],
        lambda goal: False,
        "",
        "CF1",
        True,
    ),
    "of1": Metric(
        "F1 of all decisions together",
        lambda p, _, images: affine_rules.fit_overall(p)[0],
        lambda goal: False,
        "",
        "OF1",
        False,
    ),
    "utility": Metric(
        "right labels less COST times the wrong ones",
        lambda p, cost, images: affine_rules.utility_rule(p.shape[1], cost),
        lambda cost: 0 < cost < np.inf,
        "COST of a wrong label, a number above 0",
        "utility",
        False,
    ),
}


def parse_metric(text: str) -> tuple[str, float | None] | None:
    """ "cf1_at=5" -> ("cf1_at", 5.0); None for a name that METRICS lacks. UserError for a missing or wrong goal."""
    name, _, goal = text.partition("=")
    if name not in METRICS:
        return None
    needs = METRICS[name].needs
    try:
        value = float(goal) if goal else None
    except ValueError:
        value = float("nan")
    if bool(needs) != bool(goal) or (value is not None and not METRICS[name].whole(value)):
        raise UserError(f"--for={text}: " + (f"{name}= needs {needs}" if needs else f"write --for={name} alone"))
    return name, value


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """How a run decides.

    Attributes:
      class_names: C names.
      objective: what it was learned for, as it was given: "cf1_at=5".
      images: of a batch that is scored together, as it was learned for.
      calibration: makes probabilities of scores.
      rule: decides on probabilities.
      split: where the images were from.
      step: of the checkpoint; 0 for a score file without one.
      model: digest of its variables; "" for a score file.
      data: digest of the images' ids and labels.
      ids: str [N], of the images.
      numbers: {decision: {number: mean over folds, each decided by a fit on the others}}.
      power: a of the best `calibrated / frequency^a` there.
    """

    class_names: list[str]
    objective: str
    images: int
    calibration: PooledCalibration
    rule: Rule
    split: str
    step: int
    model: str
    data: str
    ids: np.ndarray
    numbers: dict[str, Any]
    power: float | None

    def facts(self) -> dict[str, Any]:
        """What a score file of its decisions keeps of it."""
        return {name: getattr(self, name) for name in ("objective", "split", "step", "images", "data")}

    @property
    def protocol(self) -> str:
        """The name under which decisions of `choose` are reported."""
        return "learned" if self.rule.k is None else f"top{self.rule.k}_learned"

    def choose(self, scores: np.ndarray) -> np.ndarray:
        """bool [N, C]: each image on its own."""
        return self.rule.choose(self.calibration.probabilities(scores))

    def choose_batch(self, scores: np.ndarray) -> np.ndarray:
        """bool [N, C]: all images of the batch together, under a transductive protocol. UserError where none is."""
        name, _ = _parsed(self.objective)
        if not METRICS[name].batch:
            raise UserError(f"a rule for {self.objective} decides each image on its own: there is no transductive form")
        return affine_rules.decide_batch(self.calibration.probabilities(scores), self.rule.k)

    def choose_for(self, protocol: str, scores: np.ndarray) -> np.ndarray:
        """bool [N, C] under a learned or transductive protocol. UserError where it was learned for another one."""
        wanted = metrics.get_protocol(protocol)
        if wanted.k != self.rule.k:
            raise UserError(
                f"protocol {protocol}: the rule was learned for {self.objective}; learn another with "
                f"jaxmlic thresholds --for={'cf1' if wanted.k is None else f'cf1_at={wanted.k}'}"
            )
        return self.choose_batch(scores) if wanted.decision == "transductive" else self.choose(scores)

    def describe(self) -> str:
        """One line."""
        count = "any number of labels" if self.rule.k is None else f"{self.rule.k} labels an image"
        return f"rule for {self.objective} ({count}), learned on {self.split!r}"


def _parsed(objective: str) -> tuple[str, float | None]:
    found = parse_metric(objective)
    if found is None:
        known = ", ".join(f"{key} ({one.description})" for key, one in METRICS.items())
        raise UserError(f"--for={objective}: unknown{did_you_mean(objective, METRICS)}; known: {known}")
    return found


def fit(
    scores: ScoreFile,
    objective: str,
    *,
    images: int | None = None,
    model: str = "",
    folds: int | None = None,
    seed: int = 0,
) -> Decision:
    """Learns a rule on scores of images that the model was not fitted on, such as out-of-fold scores.

    Args:
      scores: of these images.
      objective: see `parse_metric`.
      images: of the batch that will be scored; None for as many as there are here.
      model: digest of the run's variables.
      seed: of the folds and of the negatives that are drawn.
      folds: each part is decided by a fit on the others, to judge decisions; None for 3 to 9, of about
        `images` each; 0 for no judgement.

    Raises:
      UserError: an unknown objective, no positive label, infinite scores.
    """
    name, goal = _parsed(objective)
    if images is not None and images < 1:
        raise UserError(f"--images={images}: a batch has at least one")
    if folds is not None and not (folds == 0 or 2 <= folds <= len(scores.labels)):
        raise UserError(f"--folds={folds}: 0, or from 2 to the {len(scores.labels):,} images")

    def learn(rows: np.ndarray, batch: int) -> tuple[PooledCalibration, Rule]:
        calibration = fit_pooled(scores.scores[rows], scores.labels[rows], seed)
        return calibration, METRICS[name].fit(calibration.probabilities(scores.scores[rows]), goal or 0.0, batch)

    try:
        calibration, rule = learn(np.arange(len(scores.labels)), images or len(scores.labels))
    except ValueError as error:
        raise UserError(f"split {scores.split!r}: {error}; give other images") from None
    if folds is None:
        folds = min(max(round(len(scores.labels) / (images or np.inf)), _FOLDS[0]), _FOLDS[1])
    numbers, power = _judged(scores, name, goal, learn, rule.k, folds, seed) if folds else ({}, None)
    return Decision(
        class_names=list(scores.class_names),
        objective=objective,
        images=images or len(scores.labels),
        calibration=calibration,
        rule=rule,
        split=scores.split,
        step=int(scores.extra.get("step", 0)),
        model=model,
        data=thresholds.digest_of_images(scores.ids, scores.labels),
        ids=scores.ids,
        numbers=numbers,
        power=power,
    )


def _judged(scores: ScoreFile, name: str, goal: float | None, learn, k: int | None, folds: int, seed: int):
    """({decision: {number: mean over folds}}, best power); ({}, None) where a fold's rest cannot be fitted on."""
    order = np.random.default_rng(seed).permutation(len(scores.labels))
    found: dict[str, list[dict[str, float]]] = {}
    for part in np.array_split(order, folds):
        rest = np.setdiff1d(order, part)
        own, labels = scores.scores[part], scores.labels[part]
        if not (labels == 1).any():
            return {}, None
        try:
            calibration, rule = learn(rest, len(part))
        except ValueError:
            return {}, None
        p = calibration.probabilities(own)
        decided = {PLAIN: _plain(own, k), CALIBRATED: _plain(p - 0.5, k)}
        if k is not None:
            decided |= {a: _plain(p / calibration.frequency**a, k) for a in POWERS}
        decided[LEARNED] = rule.choose(p)
        if METRICS[name].batch:
            decided[BATCH] = affine_rules.decide_batch(p, k)
        for key, chosen in decided.items():
            found.setdefault(key, []).append(_worth(own, labels, chosen, goal if name == "utility" else None))
    means = {key: {n: float(np.mean([row[n] for row in rows])) for n in rows[0]} for key, rows in found.items()}
    power = max(POWERS, key=lambda a: means[a]["CF1"]) if k is not None else None
    kept = {POWER if key == power else key: row for key, row in means.items() if key == power or key not in POWERS}
    return kept, power


def _plain(values: np.ndarray, k: int | None) -> np.ndarray:
    return affine_rules.best(values.astype(np.float32), k)


def _worth(scores: np.ndarray, labels: np.ndarray, chosen: np.ndarray, cost: float | None) -> dict[str, float]:
    numbers = metrics.evaluate(scores, labels, "path", chosen=chosen)
    found = {name: float(numbers[name]) for name in SHOWN}
    found["labels an image"] = float((chosen & (labels >= 0)).sum(axis=1).mean())
    if cost is not None:
        wrong = (chosen & (labels == 0)).sum()
        found["utility"] = float(((chosen & (labels == 1)).sum() - cost * wrong) / len(labels))
    return found


def save(path: str | Path, found: Decision) -> Path:
    """Writes the file; of a run folder its decision.json."""
    path = _file(path)
    storage.write_json(path, _as_json(found))
    return path


def _file(path: str | Path) -> Path:
    path = storage.to_path(path)
    return path if path.suffix == ".json" else path / FILE


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value.tolist() if isinstance(value, np.ndarray) else value


def load(path: str | Path) -> Decision | None:
    """That of a file or of a run folder, None where there is none. UserError for a damaged file."""
    path = _file(path)
    if not path.is_file():
        return None
    stored = storage.read_json(path, what="file of a decision rule", remedy=_REMEDY)
    try:
        fields = {field.name: stored[field.name] for field in dataclasses.fields(Decision)}
        count = len(fields["class_names"])
        rule, calibration = fields["rule"], fields["calibration"]
        fields["rule"] = Rule(*(_numbers(rule, name, count) for name in ("scale", "offset")), rule["k"])
        parts = {name: _numbers(calibration, name, count) for name in ("frequency", "mean", "deviation")}
        parts |= {name: _numbers(calibration, name) for name in ("knots", "coefficients")}
        low, high = calibration["bounds"]
        fields["calibration"] = PooledCalibration(
            slope=float(calibration["slope"]), intercept=float(calibration["intercept"]), bounds=(low, high), **parts
        )
        fields["ids"] = np.array(fields["ids"], str).reshape(len(fields["ids"]))
        return Decision(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a decision rule ({storage.reason(error)}); {_REMEDY}") from None


def _numbers(stored: dict, name: str, count: int | None = None) -> np.ndarray:
    values = np.array(stored[name], np.float64)
    if values.ndim != 1 or (count is not None and len(values) != count) or not np.isfinite(values).all():
        raise ValueError(f"{name} are not {'' if count is None else f'{count} '}numbers")
    return values


def find(workdir: str | Path, step: int, model: str, class_names: Sequence[str]) -> tuple[Decision | None, str]:
    """The rule in a run folder, where it belongs to the checkpoint in use; else None, and why in one line."""
    found = load(workdir)
    if found is None:
        return None, ""
    path = _file(workdir)
    check_same_classes(class_names, found.class_names, str(workdir), str(path))
    if (found.step, found.model) == (step, model):
        return found, ""
    return None, (
        f"{path} was learned on the checkpoint of step {found.step}, and that of step {step} is in use now; "
        f"learn it again with jaxmlic thresholds --workdir={workdir} --for={found.objective}"
    )
