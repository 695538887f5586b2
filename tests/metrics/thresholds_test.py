"""Thresholds against exhaustive search, shrinking by hand."""

import numpy as np
import pytest

from jaxmlic import metrics
from jaxmlic.metrics.thresholds import OBJECTIVES, fit_thresholds


def make(seed, num_images=50, num_classes=5, ties=False, unknown=0.15):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, num_classes)) < [0.5, 0.3, 0.2, 0.08, 0.4]).astype(np.int8)
    scores = (rng.normal(size=labels.shape) + 1.5 * labels - 1).astype(np.float32)
    if ties:
        scores = np.round(scores * 2) / 2 + np.float32(0)
    labels[rng.random(labels.shape) < unknown] = -1
    labels[:2, 3], labels[:, 4] = 1, np.minimum(labels[:, 4], 0)  # a rare class, and one without positives
    return scores, labels


def decided(scores, labels, threshold):
    """(predicted, hits) of plain lists."""
    cells = [(s, y) for s, y in zip(scores.ravel().tolist(), labels.ravel().tolist(), strict=True) if y >= 0]
    taken = [y for s, y in cells if s >= threshold]
    return len(taken), sum(taken), sum(y for _, y in cells)


def worth(objective, goal, scores, labels, threshold, images):
    """What the objective makes of a threshold: higher is better."""
    predicted, hits, positives = decided(scores, labels, threshold)
    precision = hits / predicted if predicted else 0.0
    if objective == "f1":
        return 2 * hits / (predicted + positives)
    if objective == "precision":  # reached: the most labels; else the highest precision
        return (1, predicted) if precision >= goal and predicted else (0, precision)
    wanted = positives if goal is None else goal * images[0] / images[1] * positives
    return -abs(predicted - wanted)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("objective", "goal"), [("f1", None), ("precision", 0.8), ("precision", 1.0), ("count", None), ("count", 2.5)]
)
def test_fitted_thresholds_are_the_best_of_all(objective, goal, ties):
    for seed in range(4):
        scores, labels = make(seed, ties=ties)
        images = (len(labels), int((labels == 1).sum()))
        found = fit_thresholds(scores, labels, objective, goal)
        columns = [(scores[:, c], labels[:, c], found.values[c]) for c in range(4)]
        for x, y, threshold in [*columns, (scores, labels, found.overall)]:
            candidates = [*np.unique(x).tolist(), 1e9]
            best = max(worth(objective, goal, x, y, t, images) for t in candidates)
            assert worth(objective, goal, x, y, np.float32(threshold), images) == best
        assert found.values[4] == found.overall and np.isnan(found.own[4])  # without positives
        together = fit_thresholds(scores, labels, objective, goal, per_class=False)
        assert (together.values == found.overall).all()


def test_the_thresholds_decide_in_evaluate():
    scores, labels = make(1)
    found = fit_thresholds(scores, labels)
    numbers = metrics.evaluate(scores, labels, threshold=found.values)
    by_hand = metrics.evaluate(scores, labels, "path", chosen=scores >= found.values.astype(np.float32))
    assert {k: numbers[k] for k in ("CP", "CF1", "OF1", "IF1")} == {k: by_hand[k] for k in ("CP", "CF1", "OF1", "IF1")}
    np.testing.assert_array_equal(numbers["threshold"], found.values)
    for c in range(4):  # each class has its highest F1, so their mean is the highest too
        alone = metrics.evaluate(scores[:, [c]], labels[:, [c]], threshold=float(found.values[c]))["CF1_mean"]
        assert alone >= metrics.evaluate(scores[:, [c]], labels[:, [c]], threshold=found.overall)["CF1_mean"]
    with pytest.raises(ValueError, match=r"threshold must be a number or float \[5\]"):
        metrics.evaluate(scores, labels, threshold=np.zeros(3))
    with pytest.raises(ValueError, match="threshold is NaN"):
        metrics.evaluate(scores, labels, threshold=np.full(5, np.nan))


def test_global_f1_is_best_threshold_s():
    scores, labels = make(2, ties=True)
    threshold, of1 = metrics.best_threshold(scores, labels)
    found = fit_thresholds(scores, labels, per_class=False)
    assert metrics.evaluate(scores, labels, threshold=found.overall)["OF1"] == pytest.approx(of1)
    np.testing.assert_array_equal(scores >= np.float32(found.overall), scores >= np.float32(threshold))


def test_rare_classes_are_shrunk():
    scores, labels = make(3)
    plain, shrunk = fit_thresholds(scores, labels), fit_thresholds(scores, labels, shrink=10.0)
    positives = (labels == 1).sum(axis=0)
    for c in range(4):
        share = positives[c] / (positives[c] + 10)
        assert shrunk.values[c] == pytest.approx(share * plain.values[c] + (1 - share) * plain.overall)
    assert abs(shrunk.values[3] - plain.overall) < abs(plain.values[3] - plain.overall)
    np.testing.assert_array_equal(shrunk.own, plain.own)


def test_neighbouring_float32_scores_are_kept_apart():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    scores, labels = np.array([[low], [high]], np.float32), np.array([[0], [1]], np.int8)
    found = fit_thresholds(scores, labels)
    np.testing.assert_array_equal(scores >= np.float32(found.values[0]), labels == 1)


def test_a_precision_that_no_threshold_reaches():
    scores, labels = np.array([[3.0], [2.0], [1.0]], np.float32), np.array([[0], [1], [1]], np.int8)
    found = fit_thresholds(scores, labels, "precision", 0.9)
    assert found.unreached.tolist() == [True] and (scores >= found.values[0]).all()  # 2/3 is the highest


def test_what_cannot_be_fitted():
    scores = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="no positive label"):
        fit_thresholds(scores, np.zeros((3, 2), np.int8))
    with pytest.raises(ValueError, match="infinite"):
        fit_thresholds(scores + np.inf, np.ones((3, 2), np.int8))
    assert set(OBJECTIVES) == {"f1", "precision", "count"}
