"""Temperature and Platt scaling against general optimisers, calibration error against a loop."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from jaxmlic.metrics import calibration


def make(seed, num_images=200, num_classes=3, unknown=0.1):
    """Logits three times too large, and shifted."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1, 1.5, (num_images, num_classes))
    labels = (rng.random(true.shape) < expit(true)).astype(np.int8)
    labels[rng.random(labels.shape) < unknown] = -1
    return (3 * true + 1).astype(np.float32), labels


def cross_entropy(logits, target):
    return (np.logaddexp(0, logits) - target * logits).mean()


def test_temperature_has_the_least_cross_entropy():
    scores, labels = make(0)
    known = labels >= 0
    x, y = scores[known].astype(float), labels[known]
    wanted = optimize.minimize_scalar(
        lambda t: cross_entropy(x / t, y), bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9}
    )
    assert calibration.fit_temperature(scores, labels) == pytest.approx(wanted.x, rel=1e-5)
    without_bias = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(x[:, None], y)
    assert calibration.fit_temperature(scores, labels) == pytest.approx(1 / without_bias.coef_[0, 0], rel=1e-4)


def test_temperature_ends_within_its_bounds():
    scores, labels = np.array([[2.0], [-2.0]], np.float32), np.array([[1], [0]], np.int8)
    assert calibration.fit_temperature(scores, labels) < 0.1  # separable: the colder the better
    assert calibration.fit_temperature(-scores, labels) == 1e3  # worse than chance
    assert np.isfinite(calibration.fit_temperature(np.zeros((2, 1), np.float32), labels))


@pytest.mark.parametrize("separable", [False, True])
def test_platt_is_a_logistic_regression_on_platt_s_targets(separable):
    """A soft target t is an example of weight t beside one of the other class with weight 1 - t."""
    scores, labels = make(1, num_classes=1)
    if separable:
        labels = (scores > 2).astype(np.int8)
    known = labels >= 0
    x, positive = scores[known].astype(float), labels[known] == 1
    high, low = (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2)
    target = np.where(positive, high, low)
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    twice = np.concatenate([x, x])[:, None]
    model.fit(twice, np.repeat([1, 0], len(x)), sample_weight=np.concatenate([target, 1 - target]))
    found = calibration.fit_platt(scores, labels)
    np.testing.assert_allclose(found, (model.coef_[0, 0], model.intercept_[0]), rtol=1e-3)
    wanted = optimize.minimize(lambda ab: cross_entropy(ab[0] * x + ab[1], target), (0.1, 0.0), method="BFGS", tol=1e-9)
    np.testing.assert_allclose(found, wanted.x, rtol=1e-3)


def test_platt_of_equal_scores_and_of_one_class():
    labels = np.array([1, 0, 0, 0], np.int8)
    a, b = calibration.fit_platt(np.full(4, 7.0, np.float32), labels)
    assert a == 0.0 and expit(b) == pytest.approx((2 / 3 + 3 / 5) / 4)
    a, b = calibration.fit_platt(np.arange(4, dtype=np.float32), np.zeros(4, np.int8))
    assert np.isfinite([a, b]).all() and (expit(a * np.arange(4) + b) < 0.5).all()


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_calibration_error_is_a_loop_s(unknown):
    scores, labels = make(2, unknown=unknown)
    scores[0, 0], scores[1, 0] = 1e4, -1e4  # probabilities 1 and 0
    p = 1 / (1 + np.exp(-np.clip(scores.astype(float), -500, 500)))

    def error(cells):
        total = 0.0
        for i in range(15):
            inside = [(q, y) for q, y in cells if i / 15 <= q < (i + 1) / 15 or (i == 14 and q == 1.0)]
            if inside:
                total += abs(sum(q for q, _ in inside) - sum(y for _, y in inside))
        return total / len(cells)

    columns = [[(q, y) for q, y in zip(p[:, c], labels[:, c], strict=True) if y >= 0] for c in range(3)]
    found = calibration.reliability(scores, labels)
    assert found.ece == pytest.approx(error([cell for cells in columns for cell in cells]), abs=1e-12)
    assert found.class_ece == pytest.approx(np.mean([error(cells) for cells in columns]), abs=1e-12)
    assert found.counts.sum() == (labels >= 0).sum()


def test_temperature_brings_probabilities_nearer_to_frequencies():
    scores, labels = make(2)
    better = calibration.reliability(scores / calibration.fit_temperature(scores, labels), labels)
    assert better.ece < calibration.reliability(scores, labels).ece
