"""Kernel ridge regression against scikit-learn, and its held-out scores against refitting."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from jaxmlic.kernels import embed, fit_embedding, folds, functions, kernel, nystrom, product, ridge

NAMES = {"linear": ("linear", {}), "exp": ("rbf", {"gamma": 1.5})}


@pytest.fixture(scope="module")
def data():
    """(points [60, 7], labels [60, 4] with unknown ones and a class without positives, new points [11, 7])."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(71, 7)).astype(np.float32) / 3
    labels = (points[:, :4] + rng.normal(0, 0.2, (71, 4)) > 0.2).astype(np.int8)
    labels[:, 3] = 0
    points[5] = points[6]  # the same image twice
    return points[:60], labels[:60], points[60:]


def refit(points, labels, new, name, alpha):
    """scikit-learn's scores in float64, on labels less the mean over the known ones; unknown ones count as it."""
    kind, options = NAMES[name]
    options = {} if kind == "linear" else options
    known = labels >= 0
    means = np.where(known, labels == 1, 0).sum(0) / np.maximum(known.sum(0), 1)
    centred = np.where(known, (labels == 1) - means, 0.0)
    model = KernelRidge(alpha=alpha, kernel=kind, **options).fit(points.astype(np.float64), centred)
    return model.predict(new.astype(np.float64)) + means


def bandwidth_of(name):
    return 1.0 if name == "linear" else 1.5


@pytest.mark.parametrize("name", ["linear", "exp"])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_scores_are_those_of_scikit_learn(name, alpha, data):
    points, labels, new = data
    width = bandwidth_of(name)
    dual = ridge.fit(points, folds.targets(labels), name, width, alpha)
    scores = product(new, points, dual, name, bandwidth_of(name)) + folds.class_means(labels)[None]
    np.testing.assert_allclose(scores, refit(points, labels, new, name, alpha), atol=5e-4 if alpha < 0.1 else 1e-5)


@pytest.mark.parametrize("name", ["linear", "exp"])
@pytest.mark.parametrize("parts", [0, 7])
@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_held_out_scores_are_those_of_refitting(name, parts, unknown, data):
    points, labels, _ = data
    labels = np.where(np.random.default_rng(1).random(labels.shape) < unknown, np.int8(-1), labels)
    fold_of, wanted = folds.folds_of(len(points), parts, seed=3), np.zeros(labels.shape)
    for fold in range(fold_of.max() + 1):
        own = fold_of == fold
        wanted[own] = refit(points[~own], labels[~own], points[own], name, 0.1)
    found = ridge.select(points, labels, fold_of, name, (bandwidth_of(name),), (0.1,)).scores
    np.testing.assert_allclose(found, wanted, atol=3e-5)
    # With all images as landmarks, or for the linear kernel the unit vectors, nothing is approximated.
    landmarks = np.eye(7, dtype=np.float32) if name == "linear" else points
    fitted = nystrom.select(points, landmarks, labels, fold_of, name, (bandwidth_of(name),), (0.1,))
    np.testing.assert_allclose(fitted.scores, wanted, atol=1e-4)


def test_folds_are_of_like_size_and_leave_one_out_has_one_image_each():
    fold_of = folds.folds_of(23, 5, seed=0)
    assert sorted(np.bincount(fold_of)) == [4, 4, 5, 5, 5]
    assert (folds.folds_of(23, 5, seed=0) == fold_of).all() and (folds.folds_of(23, 5, seed=1) != fold_of).any()
    for parts in (0, 4, 9):
        np.testing.assert_array_equal(folds.folds_of(4, parts, seed=0), np.arange(4))


def test_the_grid_is_searched_and_the_best_pair_taken(data):
    points, labels, _ = data
    fold_of = folds.folds_of(60, 5, seed=0)
    found = ridge.select(points, labels, fold_of, "exp", (0.01, 1.5, 50.0), (1e-3, 0.1, 100.0))
    assert len(found.grid) == 9
    best = max(found.grid, key=lambda row: row[2])
    assert (found.bandwidth, found.ridge) == best[:2]
    again = ridge.select(points, labels, fold_of, "exp", (found.bandwidth,), (found.ridge,)).scores
    np.testing.assert_array_equal(found.scores, again)


def test_blocks_change_nothing(data):
    points, _, new = data
    right = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    for name in functions.KERNELS:
        whole = np.asarray(kernel(new, points, name, 1.5)) @ right
        for block in (1, 60, 61 * 3, 1 << 20):
            np.testing.assert_allclose(product(new, points, right, name, 1.5, block=block), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "exp"])
def test_landmarks_are_least_squares_on_their_features(name, data):
    """Against float64: penalised coefficients of k(x, Z), a setting of the grid, blocks of a few images."""
    points, labels, new = data
    landmarks = np.eye(7, dtype=np.float32) if name == "linear" else points[7:25]
    fold_of = folds.folds_of(60, 5, seed=0)
    found = nystrom.select(points, landmarks, labels, fold_of, name, (bandwidth_of(name),), (0.03, 0.3))

    def doubles(a, b):
        a, b = a.astype(np.float64), b.astype(np.float64)
        return a @ b.T if name == "linear" else np.exp(-1.5 * ((a[:, None] - b[None]) ** 2).sum(-1))

    def scores(inside, outside, alpha):
        features, own = doubles(points[inside], landmarks), doubles(landmarks, landmarks)
        means = labels[inside].mean(0)
        dual = np.linalg.solve(features.T @ features + alpha * own, features.T @ (labels[inside] - means))
        return doubles(outside, landmarks) @ dual + means

    for alpha, (_, _, value) in zip((0.03, 0.3), found.grid, strict=True):
        wanted = np.zeros(labels.shape)
        for fold in range(5):
            wanted[fold_of == fold] = scores(fold_of != fold, points[fold_of == fold], alpha)
        np.testing.assert_allclose(folds.mean_ap(wanted, labels), value, atol=1e-3)
        if alpha == found.ridge:
            np.testing.assert_allclose(found.scores, wanted, atol=1e-4)
    all_of_them = scores(np.ones(60, bool), new, found.ridge)
    ours = product(new, landmarks, found.dual, name, found.bandwidth) + folds.class_means(labels)[None]
    np.testing.assert_allclose(ours, all_of_them, atol=1e-4)
    root = nystrom._root(landmarks, name, found.bandwidth)
    args = (points, np.arange(60), labels.astype(np.float32), landmarks, root, name, found.bandwidth)
    for one, other in zip(nystrom._moments(*args), nystrom._moments(*args, block=7 * len(landmarks)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_ridge_below_what_float32_resolves_is_not_chosen():
    """Its Cholesky factor is not a number: the others of the grid are compared."""
    same = np.ones((40, 2), np.float32)
    labels = np.int8(np.arange(40)[:, None] % 2 == 0)
    fold_of = folds.folds_of(40, 4, 0)
    found = nystrom.select(same, same[:9], labels, fold_of, "exp", (1.0,), (1e-30, 0.1))
    assert np.isfinite(found.scores).all() and np.isfinite(np.asarray(found.dual)).all()
    exact = ridge.select(same, labels, fold_of, "exp", (1.0,), (1e-30, 0.1))
    assert exact.ridge == 0.1 and np.isfinite(exact.scores).all() and np.isnan(exact.grid[0][2])


def test_float32_is_enough_for_thousands_of_images():
    """The largest eigenvalue grows with the images, and with it the error of the smallest ones."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 20))
    group = rng.integers(0, 10, 1200)
    points = (0.1 * (centres[group] + 0.5 * rng.normal(size=(1200, 20)))).astype(np.float32)
    labels = (group[:, None] == np.arange(10)[None]).astype(np.int8)
    double = np.exp(-1.5 * ((points[:, None].astype(np.float64) - points[None]) ** 2).sum(-1))
    assert np.linalg.eigvalsh(double)[-1] > 300
    inverse = np.linalg.inv(double + 0.03 * np.eye(1200))
    centred = labels - labels.mean(0)
    dual = ridge.fit(points, folds.targets(labels), "exp", 1.5, 0.03)
    np.testing.assert_allclose(double @ np.asarray(dual), double @ (inverse @ centred), atol=1e-3)


def test_extremes():
    one = ridge.select(np.ones((1, 3), np.float32), np.int8([[1, 0]]), np.zeros(1, int), "exp", (1.0,), (0.1, 1.0))
    assert one.ridge == 0.1 and np.isfinite(one.scores).all()
    same = np.ones((6, 3), np.float32)  # six copies of one image
    labels = np.int8([[1, 0], [1, 0], [0, 0], [1, -1], [1, 0], [1, -1]])
    found = ridge.select(same, labels, folds.folds_of(6, 3, 0), "exp", (1.0,), (0.1,))
    assert np.isfinite(found.scores).all() and not found.scores[:, 1].any()
    assert np.isfinite(folds.targets(np.full((3, 2), -1, np.int8))).all()


def test_points_have_the_weighted_mean_of_the_descriptors_distances():
    rng = np.random.default_rng(0)
    descriptors = [rng.normal(2.0, 1.0, (9, 4)), 100 * rng.normal(size=(9, 2))]
    embedding = fit_embedding(descriptors, (3.0, 1.0), unit=True)
    points = np.asarray(embed(embedding, descriptors, unit=True))
    wanted = np.zeros((9, 9))
    for values, weight in zip(descriptors, (0.75, 0.25), strict=True):
        directions = values / np.linalg.norm(values, axis=1, keepdims=True)
        distance = 2 - 2 * directions @ directions.T
        wanted += weight * distance / distance.mean()
    np.testing.assert_allclose(functions.squared_distances(points, points), wanted, atol=1e-5)
    plain = fit_embedding(descriptors, unit=False)
    squares = np.asarray(functions.squared_distances(*(np.asarray(embed(plain, descriptors, unit=False)),) * 2))
    np.testing.assert_allclose(squares.mean(), 1, rtol=1e-5)
    scaled = fit_embedding(descriptors, unit=False, standardise=(True, True))
    np.testing.assert_allclose(
        np.asarray(embed(scaled, descriptors, unit=False)).std(0), [0.25] * 4 + [0.354] * 2, atol=1e-3
    )
    with pytest.raises(ValueError, match="as many weights above 0"):
        fit_embedding(descriptors, (1.0,), unit=True)


def test_constant_and_zero_descriptors_count_for_nothing():
    descriptors = [np.ones((5, 3)), np.zeros((5, 2)), np.random.default_rng(0).normal(size=(5, 4))]
    embedding = fit_embedding(descriptors, unit=True, standardise=(True, False, False))
    points = np.asarray(embed(embedding, descriptors, unit=True))
    assert np.isfinite(points).all() and not points[:, :5].any() and points[:, 5:].any()
