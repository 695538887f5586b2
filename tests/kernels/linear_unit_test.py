"""The linear unit of one label against scikit-learn's ridge regression, its held-out scores against refitting."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score

from jaxmlic.kernels import linear


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(90, 6)) * 3 + 5).astype(np.float32)
    labels = (vectors[:, 0] - vectors[:, 1] + rng.normal(0, 2, 90) > 2).astype(np.int8)
    labels[::9] = -1
    return vectors, labels


def ridge_scores(vectors, truth, new, alpha):
    return Ridge(alpha=alpha).fit(vectors.astype(np.float64), truth.astype(np.float64)).predict(new.astype(np.float64))


def held_out(x, y, i, alpha):
    """The score of image i by a fit to the others; the centre of the vectors alone is that of all."""
    x, rest, mean = x - x.mean(0), np.delete(y, i).astype(np.float64), np.delete(y, i).mean()
    return Ridge(alpha=alpha, fit_intercept=False).fit(np.delete(x, i, 0), rest - mean).predict(x[i : i + 1])[0] + mean


@pytest.mark.parametrize("limit", [1000, 10])
@pytest.mark.parametrize("ridge", [0.03, 3.0])
def test_the_logit_is_a_rising_line_of_scikit_learns_score(ridge, limit, data, monkeypatch):
    """By both routes, of few images and of many; the slope is that of Platt on held-out scores."""
    monkeypatch.setattr(linear, "EXACT_LIMIT", limit)
    vectors, labels = data
    unit = linear.fit(vectors, labels, ridges=(ridge,))
    known = labels >= 0
    x, y = vectors[known], labels[known]
    alpha = ridge * ((x - x.mean(0)) ** 2).sum(1).mean()
    expected = ridge_scores(x, y, vectors, alpha)
    logits = vectors @ unit.kernel + unit.bias
    slope, offset = np.polyfit(expected, logits, 1)
    assert slope > 0
    np.testing.assert_allclose(logits, slope * expected + offset, atol=2e-4 * np.abs(logits).max())
    if limit == 10:
        return
    held = np.array([held_out(x.astype(np.float64), y, i, alpha) for i in range(len(y))])
    assert unit.average_precision == pytest.approx(average_precision_score(y, held), abs=1e-6)
    positives = (y == 1).sum()  # Platt's targets: an example counts as present to one share, as absent to the other
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2))
    platt = LogisticRegression(C=1e9, tol=1e-8).fit(
        np.tile(held, 2)[:, None], np.repeat([1, 0], len(y)), np.concatenate([target, 1 - target])
    )
    assert slope == pytest.approx(platt.coef_[0, 0], rel=1e-3)
    centre = len(y) // 2
    line = platt.intercept_[0] + platt.coef_[0, 0] * ridge_scores(x, y, x[centre : centre + 1], alpha)[0]
    assert x[centre] @ unit.kernel + unit.bias == pytest.approx(line, abs=5e-3)


def test_the_ridge_is_the_best_of_held_out_scores(data):
    vectors, labels = data
    chosen = linear.fit(vectors, labels)
    each = {ridge: linear.fit(vectors, labels, ridges=(ridge,)).average_precision for ridge in linear.RIDGES}
    assert each[chosen.ridge] == max(each.values()) > min(each.values())
