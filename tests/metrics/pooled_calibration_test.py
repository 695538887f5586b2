"""One calibration of all labels: against scikit-learn, on simulated labels, and where there is little to learn from."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from jaxmlic.metrics import pooled_calibration
from jaxmlic.metrics.pooled_calibration import fit_logistic, fit_pooled


def simulated(seed=0, num_images=600, num_labels=12):
    """(scores, labels, true probabilities); scores are bent, and labels of very different frequency."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (num_images, num_labels)) + np.linspace(-5, 0, num_labels)
    labels = (rng.random(true.shape) < expit(true)).astype(np.int8)
    return (np.sinh(true / 2) + 1).astype(np.float32), labels, expit(true)


def test_logistic_regression_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) * [1, 10, 0.1, 1] + [0, 5, 0, 2]
    x[:, 3] = 2.0  # does not vary
    target = (rng.random(300) < expit(x[:, 0] - 0.2 * x[:, 1])).astype(float)
    weights = rng.uniform(0.5, 3, 300)
    found = fit_logistic(x, target, weights, penalty=0.5)
    mean = np.average(x, axis=0, weights=weights)
    deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    deviation[3] = 1.0
    reference = LogisticRegression(C=2.0, tol=1e-10, max_iter=1000).fit((x - mean) / deviation, target, weights)
    coefficients = reference.coef_[0] / deviation
    np.testing.assert_allclose(found[:4], coefficients, atol=1e-5)
    np.testing.assert_allclose(found[4], reference.intercept_[0] - coefficients @ mean, atol=1e-5)


def test_separable_rows_stay_finite():
    x = np.linspace(-1, 1, 20)[:, None]
    assert np.isfinite(fit_logistic(x, (x[:, 0] > 0).astype(float), np.ones(20))).all()


def test_probabilities_are_near_the_true_ones():
    scores, labels, _ = simulated()
    found = fit_pooled(scores, labels)
    other, _, truth = simulated(seed=1)
    p = found.probabilities(other)
    assert np.abs(p - truth).mean() < 0.02 and np.abs(p.mean(axis=0) - truth.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose(p, expit(found.logits(other)))


def test_drawn_negatives_are_weighted(monkeypatch):
    scores, labels, _ = simulated()
    whole = fit_pooled(scores, labels).probabilities(scores)
    monkeypatch.setattr(pooled_calibration, "MOST_NEGATIVES", 2500)
    drawn = fit_pooled(scores, labels)
    assert np.abs(drawn.probabilities(scores) - whole).mean() < 0.01
    again = fit_pooled(scores, labels)
    for field in dataclasses.fields(drawn):
        np.testing.assert_array_equal(getattr(drawn, field.name), getattr(again, field.name))


def test_blocks_of_rows_change_nothing(monkeypatch):
    scores, labels, _ = simulated(num_images=60)
    whole = fit_pooled(scores, labels)
    monkeypatch.setattr(pooled_calibration, "_ROWS", 50)
    parts = fit_pooled(scores, labels)
    np.testing.assert_allclose(parts.logits(scores), whole.logits(scores), rtol=1e-9, atol=1e-9)


def test_unknown_labels_do_not_count():
    scores, labels, _ = simulated(num_images=200)
    garbage = np.random.default_rng(1).normal(0, 50, (30, 12)).astype(np.float32)
    with_unknown = np.concatenate([scores, garbage]), np.concatenate([labels, np.full((30, 12), -1, np.int8)])
    plain, other = fit_pooled(scores, labels), fit_pooled(*with_unknown)
    np.testing.assert_allclose(other.probabilities(scores), plain.probabilities(scores), atol=1e-9)


def test_a_single_positive_does_not_count_for_its_own_image():
    """A label's only positive is seen as a label without any: else a rare label would look likely in itself."""
    rng = np.random.default_rng(0)
    labels = np.zeros((200, 60), np.int8)
    labels[np.arange(60), np.arange(60)] = 1  # one positive each
    labels[:, :10] = rng.random((200, 10)) < 0.3
    scores = rng.normal(size=labels.shape).astype(np.float32)  # which say nothing
    p = fit_pooled(scores, labels).probabilities(rng.normal(size=labels.shape).astype(np.float32))
    assert p[:, 10:].mean() < 0.02 and p[:, :10].mean() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("shape", [(30, 1), (30, 2), (4, 3)])
def test_extremes(shape):
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=shape).astype(np.float32), (rng.random(shape) < 0.5).astype(np.int8)
    labels[0, 0], labels[1, 0] = 1, 0
    if shape[1] > 1:
        labels[:, 1], scores[:, 1] = 0, 0.0  # no positive, and scores that are all the same
    if shape[1] > 2:
        labels[:, 2] = -1
    found = fit_pooled(scores, labels)
    far = found.probabilities(np.float32([[1e30] * shape[1], [-1e30] * shape[1]]))
    assert np.isfinite(found.logits(scores)).all() and ((far >= 0) & (far <= 1)).all()


def test_nothing_to_learn_from():
    scores = np.zeros((3, 2), np.float32)
    for labels, what in ((np.zeros((3, 2), np.int8), "positive"), (np.ones((3, 2), np.int8), "negative")):
        with pytest.raises(ValueError, match=f"no {what} label"):
            fit_pooled(scores, labels)
    with pytest.raises(ValueError, match="infinite"):
        fit_pooled(np.full((3, 2), np.inf, np.float32), np.eye(3, 2, dtype=np.int8))
