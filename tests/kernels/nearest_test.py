"""2PKNN and TagProp against plain loops."""

import math

import jax
import jax.test_util
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxmlic import propagation
from jaxmlic.kernels import nearest, tagprop


@pytest.fixture(scope="module")
def data():
    """(points [40, 3], labels [40, 4], the last of them without a positive, queries [5, 3])."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 3)).astype(np.float32)
    labels = (rng.random((40, 4)) < 1 / (1 + np.exp(-2 * points @ rng.normal(size=(3, 4))))).astype(np.int8)
    labels[:, 3] = 0
    labels[2, 1] = -1
    points[8] = points[9]
    return points, labels, rng.normal(size=(5, 3)).astype(np.float32)


def test_neighbours_are_those_of_the_library(data):
    points, _, queries = data
    found, distances = nearest.nearest(points, points, 7, np.arange(40))
    wanted, squares = propagation.knn(points, 7, "euclidean")
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(distances, squares, atol=1e-5)
    found, _ = nearest.nearest(points, queries, 40)
    assert (np.sort(found, axis=1) == np.arange(40)).all()


def two_pass_loops(points, labels, query, group_size, bandwidth, own=None):
    distance = [sum((float(a) - float(b)) ** 2 for a, b in zip(query, point, strict=True)) for point in points]
    chosen = set()
    for label in range(labels.shape[1]):
        having = [i for i in range(len(points)) if labels[i, label] == 1 and i != own]
        chosen |= set(sorted(having, key=lambda i: (distance[i], i))[:group_size])
    scores = [0.0] * labels.shape[1]
    for i in chosen:
        for label in range(labels.shape[1]):
            scores[label] += math.exp(-bandwidth * distance[i]) * (labels[i, label] == 1)
    return scores


@pytest.mark.parametrize("group_size", [1, 3, 100])
def test_two_passes(group_size, data):
    points, labels, queries = data
    widths = np.float32([0.3, 1.5])
    found = nearest.two_pass(points, labels == 1, queries, group_size, widths)
    own = nearest.two_pass_held_out(points, labels == 1, (2, group_size), widths, rows=13)[1]
    for place, width in enumerate(widths.tolist()):
        wanted = [two_pass_loops(points, labels, query, group_size, width) for query in queries]
        np.testing.assert_allclose(found[:, place], wanted, rtol=1e-4, atol=1e-6)
        wanted = [two_pass_loops(points, labels, points[i], group_size, width, i) for i in range(40)]
        np.testing.assert_allclose(own[place], wanted, rtol=1e-4, atol=1e-6)
    assert not np.asarray(found)[..., 3].any()


def problem(data, count=6):
    points, labels, _ = data
    rows, squares = nearest.nearest(points, points, count, np.arange(40))
    halves = ((points[:, None] - points[np.asarray(rows)]) ** 2)[..., :2]
    return np.asarray(rows), np.concatenate([np.asarray(squares)[..., None], halves], axis=2), labels


def likelihood_loops(theta, slope, offset, rows, distances, labels, form):
    """Eqs 1 to 4 and 9, one number after the other."""
    total = 0.0
    num_positive, num_negative = int((labels == 1).sum()), int((labels == 0).sum())
    for i in range(len(rows)):
        if form == "rank":
            pi = [float(g) for g in theta]
        else:
            raw = [math.exp(-sum(float(t) * float(d) for t, d in zip(theta, ds, strict=True))) for ds in distances[i]]
            pi = [value / sum(raw) for value in raw]
        for w in range(labels.shape[1]):
            if labels[i, w] == -1:
                continue
            x = sum(p for p, j in zip(pi, rows[i], strict=True) if labels[j, w] == 1)
            if slope is None:
                p = sum(
                    share * ((1 - tagprop.EPS) if labels[j, w] == 1 else tagprop.EPS)
                    for share, j in zip(pi, rows[i], strict=True)
                )
            else:
                p = 1 / (1 + math.exp(-(slope[w] * x + offset[w])))
            total += math.log(p) / num_positive if labels[i, w] == 1 else math.log(1 - p) / num_negative
    return total


@pytest.mark.parametrize("form", tagprop.FORMS)
@pytest.mark.parametrize("sigmoids", [False, True])
def test_the_likelihood_is_that_of_the_paper_and_its_maximum_is_found(form, sigmoids, data):
    rows, distances, labels = problem(data)
    found, curve = tagprop.fit(distances, rows, labels, form, sigmoids=sigmoids, rounds=8, steps=40)
    assert (np.diff(curve) >= -2e-4).all()  # a float32 share near 1 leaves 1 - p, at least EPS, to one part in 200
    theta = np.asarray(found.theta, float)
    slope, offset = (np.asarray(found.slope), np.asarray(found.offset)) if sigmoids else (None, None)
    best = likelihood_loops(theta, slope, offset, rows, distances, labels, form)
    penalty = 0.5e-4 * (tagprop.importance(labels).sum(0) * (slope**2 + offset**2)).sum() if sigmoids else 0.0
    np.testing.assert_allclose(curve[-1], best - penalty, rtol=2e-4)
    assert (theta >= 0).all() and (form == "distance" or abs(theta.sum() - 1) < 1e-4)
    rng = np.random.default_rng(1)
    for size in (0.02, 0.3):
        for _ in range(8):
            near = np.maximum(theta + size * rng.normal(size=theta.shape), 0)
            near = near / near.sum() if form == "rank" else near
            assert likelihood_loops(near, slope, offset, rows, distances, labels, form) <= best + 2e-3


def test_one_round_of_em_is_the_one_of_loops(data):
    rows, distances, labels = problem(data)
    found, _ = tagprop.fit(distances, rows, labels, "rank", sigmoids=False, rounds=1, steps=1)
    weight, gamma, eps = tagprop.importance(labels), 1 / 6, tagprop.EPS
    new = np.zeros(6)
    for i in range(40):
        for w in range(4):
            each = [gamma * ((1 - eps) if (labels[j, w] == 1) == (labels[i, w] == 1) else eps) for j in rows[i]]
            new += weight[i, w] * np.array(each) / sum(each)
    np.testing.assert_allclose(found.theta, new / new.sum(), rtol=1e-4)


def test_sigmoids_are_logistic_regressions(data):
    rows, distances, labels = problem(data)
    found, _ = tagprop.fit(distances, rows, labels, "distance", rounds=1, steps=0)
    x = np.asarray(tagprop.shares(tagprop.weights_of(found.theta, distances, "distance"), rows, labels == 1))
    weight = tagprop.importance(labels)
    for w in range(3):
        known = labels[:, w] >= 0
        share = weight[known, w] / weight[known, w].sum()
        model = LogisticRegression(C=1 / 1e-4, fit_intercept=False, tol=1e-8, max_iter=1000)
        columns = np.stack([x[known, w], np.ones(known.sum())], axis=1)
        model.fit(columns, labels[known, w], sample_weight=share)
        np.testing.assert_allclose([found.slope[w], found.offset[w]], model.coef_[0], rtol=2e-2, atol=2e-2)
    assert np.isfinite(found.offset).all() and float(found.offset[3]) < 0  # no positive


def test_gradient_of_the_shares(data):
    rows, _, labels = problem(data)
    weights = np.random.default_rng(0).random((40, 6)).astype(np.float32)
    jax.test_util.check_grads(
        lambda w: tagprop.shares(w, rows, labels == 1), (weights,), order=1, modes=("rev",), rtol=1e-2
    )
