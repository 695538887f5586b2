"""Neighbours by brute force, diffusion and soft scores by dense solvers, improved propagation against plain Python."""

import itertools

import jax
import numpy as np
import pytest
import scipy.linalg
from scipy import sparse

from jaxmlic.errors import UserError
from jaxmlic.propagation import (
    WEIGHTS,
    PseudoLabels,
    by_frequency,
    class_weights,
    cosine_graph,
    diffusion,
    heat_kernel_graph,
    improved_label_propagation,
    knn,
    leave_unknown,
    link_strength,
    neighbours,
    soft_label_propagation,
    weigh,
)


def clusters(num_points, num_classes=4, dim=6, seed=0, spread=0.6):
    """Points around a centre for each class, float32 [N, D], and their classes int [N]."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, num_classes, num_points)
    centres = rng.normal(size=(num_classes, dim))
    return (centres[classes] + spread * rng.normal(size=(num_points, dim))).astype(np.float32), classes


def partly(classes, num_classes=4, every=7):
    """One-hot int8 [N, C] of every seventh point, the others unknown."""
    labels = np.full((len(classes), num_classes), -1, np.int8)
    labels[::every] = np.eye(num_classes, dtype=np.int8)[classes[::every]]
    return labels


def several(num_points, num_classes=4, every=5, seed=0, unknown=0.0):
    """Random label sets of every fifth point, some values of them unknown."""
    rng = np.random.default_rng(seed)
    labels = np.full((num_points, num_classes), -1, np.int8)
    rows = labels[::every]
    rows[:] = rng.random(rows.shape) < 0.5
    rows[rng.random(rows.shape) < unknown] = -1
    return labels


# --- neighbours


def by_brute_force(points, k, metric):
    """All distances in float64, sorted; equals in the order of rows."""
    points = points.astype(np.float64)
    if metric == "cosine":
        length = np.linalg.norm(points, axis=1, keepdims=True)
        points = points / np.where(length > 0, length, 1)
        closeness = points @ points.T
    else:
        closeness = -((points[:, None] - points[None]) ** 2).sum(2)
    np.fill_diagonal(closeness, -np.inf)
    order = np.argsort(-closeness, axis=1, kind="stable")[:, : min(k, len(points) - 1)]
    return order, np.take_along_axis(closeness, order, 1) * (-1 if metric == "euclidean" else 1)


@pytest.mark.parametrize("metric", neighbours.METRICS)
@pytest.mark.parametrize(("num_points", "k"), [(300, 5), (300, 40), (2, 1), (7, 6), (7, 50), (1, 3)])
def test_knn_is_that_of_brute_force(metric, num_points, k):
    points, _ = clusters(num_points, spread=0.3 if metric == "cosine" else 2.0)
    points[:, 0] += 30 if metric == "euclidean" else 3  # far from the origin, where a product loses digits
    indices, values = knn(points, k, metric)
    expected, expected_values = by_brute_force(points, k, metric)
    assert indices.shape == values.shape == (num_points, min(k, num_points - 1))
    assert indices.dtype == np.int32 and values.dtype == np.float32
    np.testing.assert_allclose(values, expected_values, rtol=2e-4, atol=2e-6)
    assert np.sum(indices != expected) <= 0.001 * indices.size  # two neighbours may be equally far in float32
    assert (indices != np.arange(num_points)[:, None]).all()


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_blocks_change_nothing(metric, monkeypatch):
    points, _ = clusters(1000)
    points = np.round(4 * points)  # many equal distances
    whole = knn(points, 10, metric)
    for name, value in (("_QUERIES", 70), ("_PART", 30), ("_ROWS", 7)):
        monkeypatch.setattr(neighbours, name, value)
    for one, other in zip(whole, knn(points, 10, metric), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_largest_of_groups_are_the_largest():
    plain = jax.lax.top_k
    values = np.round(np.random.default_rng(0).normal(size=(20, 1003)), 1).astype(np.float32)  # ties throughout
    np.testing.assert_array_equal(neighbours._largest(values, 26), plain(values, 26)[1])
    np.testing.assert_array_equal(neighbours._largest(values, 1), plain(values, 1)[1])


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_the_search_of_an_accelerator_finds_the_same(metric, monkeypatch):
    """A CPU searches with faiss; here JAX's search of an accelerator runs on it."""
    points, _ = clusters(311)
    here = knn(points, 9, metric)
    monkeypatch.setattr(neighbours, "_BLOCK", 20_000)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = knn(points, 9, metric)
    np.testing.assert_allclose(there[1], here[1], rtol=2e-4, atol=2e-6)
    assert np.sum(there[0] != here[0]) <= 0.001 * here[0].size


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_copies_of_a_point_are_its_nearest_in_the_order_of_rows(metric):
    points, _ = clusters(40)
    points[[3, 11, 30]] = points[25]
    indices, values = knn(points, 4, metric)
    assert indices[25, :3].tolist() == [3, 11, 30] and indices[11, :3].tolist() == [3, 25, 30]
    np.testing.assert_allclose(values[25, :3], 1 if metric == "cosine" else 0, atol=1e-6 if metric == "cosine" else 0)
    all_same = np.ones((9, 3))
    for indices, _ in (knn(all_same, 3, metric), knn(all_same * 0, 3, metric)):
        assert indices[0].tolist() == [1, 2, 3] and indices[8].tolist() == [0, 1, 2]


def test_knn_refuses():
    for arguments in ((np.ones(3), 1), (np.ones((3, 2)), 0), (np.ones((0, 2)), 1), (np.ones((3, 2)), 1, "manhattan")):
        with pytest.raises(ValueError, match="metric="):
            knn(*arguments)
    with pytest.raises(ValueError, match="search='aproximate' is not one of"):
        knn(np.eye(3), 1, search="aproximate")
    with pytest.raises(UserError, match=r"features of image 1 \(of 3\) are not finite"):
        knn(np.array([[1.0], [np.inf], [2.0]]), 1)


@pytest.mark.parametrize(("metric", "dim"), [("euclidean", 8), ("cosine", 150)])
def test_approximate_neighbours(metric, dim):
    """Nearly those of the exact search, with its values, the same on every run; 150 dimensions are projected first."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2000, 8)).astype(np.float32)
    if dim > 8:
        points = points @ rng.normal(size=(8, dim)).astype(np.float32) + 0.05 * rng.normal(size=(2000, dim))
    points[[3, 11, 30]] = points[25]
    indices, values = knn(points, 10, metric, search="approximate")
    exact, exact_values = knn(points, 10, metric)
    assert indices.shape == exact.shape and indices.dtype == np.int32 and values.dtype == np.float32
    same = (indices[:, :, None] == exact[:, None, :]) & (indices >= 0)[:, :, None]
    assert same.sum() > 0.95 * indices.size
    np.testing.assert_allclose(values[same.any(2)], exact_values[same.any(1)], rtol=1e-5, atol=1e-6)
    assert (indices != np.arange(2000)[:, None]).all() and (
        np.diff(values) * (1 if metric != "cosine" else -1) >= 0
    ).all()
    assert indices[25, :3].tolist() == [3, 11, 30] and indices[11, :3].tolist() == [3, 25, 30]
    for one, other in zip(knn(points, 10, metric, search="approximate"), (indices, values), strict=True):
        np.testing.assert_array_equal(one, other)


def test_approximate_neighbours_of_few_or_equal_points(monkeypatch):
    for points in (clusters(7)[0], clusters(7, dim=200)[0]):
        for one, other in zip(knn(points, 50, search="approximate"), knn(points, 50), strict=True):
            np.testing.assert_array_equal(one, other)
    assert knn(points[:1], 3, search="approximate")[0].shape == (1, 0)
    indices, values = knn(np.ones((200, 3)), 5, "euclidean", search="approximate")
    assert (indices != np.arange(200)[:, None]).all() and not values[indices >= 0].any()
    monkeypatch.setattr(neighbours, "_CELLS", 1)  # a cell with fewer points than neighbours are asked for
    indices, values = knn(clusters(60, spread=0.01)[0], 40, "euclidean", search="approximate")
    assert (indices == -1).any() and (np.isinf(values) == (indices == -1)).all()
    assert (
        np.isfinite(heat_kernel_graph(indices, values).data).all()
        and np.isfinite(cosine_graph(indices, -values).data).all()
    )


# --- graphs


def test_graphs_by_hand():
    indices, values = np.array([[1, 2], [0, -1], [2, 1]]), np.array([[1.0, 4.0], [1.0, 9.0], [0.0, 2.0]])
    heat = heat_kernel_graph(indices, values, 2.0).toarray()  # -1 and the point itself are passed over
    e = np.exp(-np.array([1, 4, 2]) / 2)
    np.testing.assert_allclose(heat, [[0, e[0], e[1]], [e[0], 0, e[2]], [e[1], e[2], 0]])
    default = heat_kernel_graph(indices, values)  # mean of 1, 4, 1 and 2
    np.testing.assert_allclose(default.toarray(), heat_kernel_graph(indices, values, 2.0).toarray())
    cosine = cosine_graph(indices, values / 10 - 0.15).toarray()  # two of them negative
    np.testing.assert_allclose(cosine, [[0, 0, 0.25**3], [0, 0, 0.05**3], [0.25**3, 0.05**3, 0]])


def test_no_edge_is_lost_however_far():
    heat = heat_kernel_graph(np.array([[1], [0], [0]]), np.array([[1e-9], [1e-9], [1e9]]), 1.0)
    assert heat.nnz == 4 and (heat.data > 0).all()
    np.testing.assert_array_equal(heat_kernel_graph(np.array([[1], [0]]), np.zeros((2, 1))).toarray(), 1 - np.eye(2))
    for bandwidth in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="bandwidth"):
            heat_kernel_graph(np.array([[1], [0]]), np.zeros((2, 1)), bandwidth)
    with pytest.raises(ValueError, match=r"not both \[N, K\]"):
        cosine_graph(np.array([[1], [0]]), np.zeros((2, 2)))


def strength_by_hand(graph):
    weights = graph.toarray().tolist()
    size = len(weights)
    strength = np.zeros((size, size))
    for a, b, c in itertools.product(range(size), repeat=3):
        if weights[a][b] and weights[a][c] and weights[c][b]:
            strength[a, b] += weights[a][c] + weights[c][b]
    return strength


@pytest.mark.parametrize("rows", [512, 7])
def test_link_strength_is_eq_1(rows, monkeypatch):
    monkeypatch.setattr("jaxmlic.propagation.graphs._ROWS", rows)
    graph = heat_kernel_graph(*knn(clusters(40)[0], 5, "euclidean"))
    strength = link_strength(graph)
    np.testing.assert_allclose(strength.toarray(), strength_by_hand(graph), rtol=1e-12)
    path = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0.0]]))
    assert not link_strength(path).toarray().any()  # no two of its neighbours are neighbours


# --- improved label propagation


def improved_by_hand(strength, labels, multi_label):
    """The method image by image in plain Python: the labels, and how often two states alternated."""
    size, num_classes = labels.shape
    settled = (labels != -1).tolist()

    def decided(states):
        """Every image's labels by its neighbours in one state, or in two together."""
        new = [list(row) for row in states[0]]
        for a in range(size):
            pairs = [(strength[a][b], state[b]) for state in states for b in range(size) if strength[a][b] > 0]
            positive = [sum(s for s, row in pairs if row[c] == 1) for c in range(num_classes)]
            known = [sum(s for s, row in pairs if row[c] != -1) for c in range(num_classes)]
            for c in range(num_classes):
                if known[c] and not settled[a][c]:
                    best = positive[c] / known[c] >= 0.5 if multi_label else c == positive.index(max(positive))
                    new[a][c] = int(best)
        return new

    before, current, alternations = None, labels.tolist(), 0
    while (new := decided([current])) != current:
        if new == before:
            both = decided([current, before])
            for a in range(size):
                changing = [new[a][c] != current[a][c] for c in range(num_classes)]
                for c in range(num_classes):
                    if changing[c] or (any(changing) and not multi_label):
                        new[a][c], settled[a][c] = both[a][c], True
            before, alternations = None, alternations + 1
        else:
            before = current
        current = new
    return np.array(current), alternations


def test_improved_single_label_by_plain_python():
    points, classes = clusters(90)
    graph, labels = heat_kernel_graph(*knn(points, 6, "euclidean")), partly(classes)
    found = improved_label_propagation(graph, labels, multi_label=False)
    by_hand, _ = improved_by_hand(link_strength(graph).toarray(), labels, False)
    np.testing.assert_array_equal(found.labels, by_hand)
    assert found.labels.dtype == np.int8 and found.num_rounds > 2
    known = labels[:, 0] != -1
    np.testing.assert_array_equal(found.labels[known], labels[known])
    assert np.mean(found.labels.argmax(1) == classes) > 0.8


ALTERNATING = {(0, 0.3), (1, 0.0), (1, 0.3)}  # seeds of graphs on which two states would follow each other for ever


@pytest.mark.parametrize("unknown", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_improved_multi_label_by_plain_python(seed, unknown):
    graph = heat_kernel_graph(*knn(clusters(80, seed=seed)[0], 6, "euclidean"))
    labels = several(80, seed=seed, unknown=unknown)
    found = improved_label_propagation(graph, labels)
    again = improved_label_propagation(graph, labels, strength=link_strength(graph))
    np.testing.assert_array_equal(again.labels, found.labels)
    strength = link_strength(graph).toarray()
    by_hand, alternations = improved_by_hand(strength, labels, True)
    np.testing.assert_array_equal(found.labels, by_hand)
    assert ((found.labels == labels) | (labels == -1)).all()
    assert (alternations > 0) == ((seed, unknown) in ALTERNATING)
    np.testing.assert_allclose(found.weights, (found.labels != -1).mean(1))
    # The scores are the shares of strength that the result itself gives.
    known = strength @ (found.labels != -1)
    share = np.divide(strength @ (found.labels == 1), known, out=np.zeros(labels.shape), where=known > 0)
    np.testing.assert_allclose(found.scores, np.where(labels == -1, share, labels), atol=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("method", [improved_label_propagation, soft_label_propagation, diffusion])
def test_the_order_of_images_does_not_matter(method, multi_label):
    points, classes = clusters(120)
    labels = several(120) if multi_label else partly(classes)
    order = np.random.default_rng(1).permutation(120)
    results = []
    for rows in (np.arange(120), np.arange(120), order):
        graph = heat_kernel_graph(*knn(points[rows], 8, "euclidean"))
        results.append(method(graph, labels[rows], multi_label=multi_label))
    first, again, permuted = results
    for one, other in zip(first[:3], again[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(permuted.labels, first.labels[order])
    np.testing.assert_allclose(permuted.scores, first.scores[order], atol=1e-4)
    np.testing.assert_allclose(permuted.weights, first.weights[order], atol=1e-4)


def complete(size):
    """All linked with the same weight."""
    return sparse.csr_array(1 - np.eye(size))


def test_ties_go_to_the_lower_index_and_a_half_is_kept():
    labels = np.array([[0, 0, 1], [0, 1, 0], [-1, -1, -1]], np.int8)
    found = improved_label_propagation(complete(3), labels, multi_label=False)
    assert found.labels[2].tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.scores[2], [0, 0.5, 0.5])
    found = improved_label_propagation(complete(3), labels)
    assert found.labels[2].tolist() == [0, 1, 1]


@pytest.mark.parametrize("multi_label", [False, True])
def test_two_states_that_alternate_come_to_an_end(multi_label):
    """Two halves that listen to each other more than to themselves would swap their labels for ever."""
    size = 5
    weights = np.full((2 * size, 2 * size), 0.01)
    weights[:size, size:] = weights[size:, :size] = 1
    np.fill_diagonal(weights, 0)
    # A labelled image for each half, linked more weakly, starts them off with different labels.
    weights = np.pad(weights, ((0, 2), (0, 2)))
    weights[-2, :size] = weights[:size, -2] = weights[-1, size : 2 * size] = weights[size : 2 * size, -1] = 0.001
    graph = sparse.csr_array(weights)
    labels = np.full((2 * size + 2, 2), -1, np.int8)
    labels[-2:] = np.eye(2)
    found = improved_label_propagation(graph, labels, multi_label=multi_label)
    assert found.num_rounds < 20 and (found.labels != -1).all()
    np.testing.assert_array_equal(found.labels[-2:], np.eye(2))
    if not multi_label:
        assert (found.labels.sum(1) == 1).all()


@pytest.mark.parametrize("method", [improved_label_propagation, soft_label_propagation, diffusion])
def test_labels_come_from_labelled_images_alone(method):
    """Two groups without a link; in the second nothing is labelled."""
    graph = sparse.block_diag([complete(5), complete(4), sparse.csr_array((1, 1))], format="csr")
    labels = np.full((10, 3), -1, np.int8)
    labels[0] = [1, 0, 0]
    for multi_label in (False, True):
        found = method(graph, labels, multi_label=multi_label)
        np.testing.assert_array_equal(found.labels[:5], [[1, 0, 0]] * 5)
        np.testing.assert_array_equal(found.scores[:5], [[1, 0, 0]] * 5)
        np.testing.assert_array_equal(found.labels[5:], -1)
        assert not found.scores[5:].any() and found.weights.tolist() == [1] * 5 + [0] * 5


@pytest.mark.parametrize("method", [improved_label_propagation, soft_label_propagation, diffusion])
def test_propagation_refuses(method):
    with pytest.raises(UserError, match="none of 3 images has a positive label"):
        method(complete(3), np.full((3, 2), -1, np.int8))
    two, none = np.array([[-1, -1], [1, 1], [0, 1]], np.int8), np.array([[-1, -1], [1, 0], [0, 0]], np.int8)
    with pytest.raises(UserError, match="image 1 has 2 labels"):
        method(complete(3), two, multi_label=False)
    with pytest.raises(UserError, match="image 2 has 0 labels"):
        method(complete(3), none, multi_label=False)
    with pytest.raises(ValueError, match=r"not \[N, N\] and \[N, C\]"):
        method(complete(4), two)


@pytest.mark.parametrize("method", [improved_label_propagation, soft_label_propagation, diffusion])
def test_all_labelled_and_a_single_class(method):
    labels = np.array([[1, 0], [0, 1], [1, 0]], np.int8)
    for multi_label in (False, True):
        found = method(complete(3), labels, multi_label=multi_label)
        np.testing.assert_array_equal(found.labels, labels)
        assert found.weights.tolist() == [1, 1, 1]
    one = method(complete(3), np.array([[1], [-1], [-1]], np.int8), multi_label=False)
    assert one.labels.ravel().tolist() == [1, 1, 1] and np.isfinite(one.weights).all()


# --- soft label propagation


def harmonic(graph, values):
    """Values in 0..1 float [N], NaN where unknown: those unknown become the weighted means of their neighbours'."""
    strength = strength_by_hand(graph)
    unknown = np.isnan(values)
    laplacian = np.diag(strength.sum(1)) - strength
    right = strength[np.ix_(unknown, ~unknown)] @ values[~unknown]
    found = values.copy()
    found[unknown] = scipy.linalg.solve(laplacian[np.ix_(unknown, unknown)], right)
    return found


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_soft_multi_label_scores_are_harmonic(unknown):
    graph, labels = heat_kernel_graph(*knn(clusters(60)[0], 8, "euclidean")), several(60, unknown=unknown)
    found = soft_label_propagation(graph, labels, tolerance=1e-11)
    wanted = np.stack([harmonic(graph, np.where(c == -1, np.nan, c)) for c in labels.T.astype(float)], axis=1)
    np.testing.assert_allclose(found.scores, wanted, atol=1e-6)
    clear = np.abs(wanted - 0.5) > 1e-6
    np.testing.assert_array_equal(found.labels[clear], (wanted >= 0.5)[clear])
    inside = np.clip(wanted, 1e-300, 1 - 1e-16)
    entropy = -(inside * np.log(inside) + (1 - inside) * np.log1p(-inside)) / np.log(2)
    np.testing.assert_allclose(found.weights, np.where(labels == -1, 1 - entropy, 1).mean(1), atol=1e-5)


def test_soft_single_label_scores_are_harmonic():
    points, classes = clusters(60)
    graph, labels = heat_kernel_graph(*knn(points, 8, "euclidean")), partly(classes)
    found = soft_label_propagation(graph, labels, multi_label=False, tolerance=1e-11)
    wanted = np.stack([harmonic(graph, np.where(c == -1, np.nan, c)) for c in labels.T.astype(float)], axis=1)
    np.testing.assert_allclose(found.scores, wanted, atol=1e-6)
    np.testing.assert_allclose(found.scores.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(found.labels, np.eye(4)[wanted.argmax(1)])
    loose = soft_label_propagation(graph, labels, multi_label=False)
    assert loose.num_rounds < found.num_rounds and np.abs(loose.scores - wanted).max() < 0.02


def test_soft_rounds_one_by_one():
    """Two rounds in plain Python: the share of positives in what has arrived by then."""
    graph, labels = heat_kernel_graph(*knn(clusters(40)[0], 4, "euclidean")), several(40, every=9)
    strength = strength_by_hand(graph)
    positive, known = (labels == 1).astype(float), (labels != -1).astype(float)
    for _ in range(2):
        before = positive.copy(), known.copy()
        for a, c in itertools.product(range(40), range(4)):
            total = strength[a].sum()
            if labels[a, c] == -1 and total > 0:
                positive[a, c] = sum(strength[a, b] * before[0][b, c] for b in range(40)) / total
                known[a, c] = sum(strength[a, b] * before[1][b, c] for b in range(40)) / total
    found = soft_label_propagation(graph, labels, max_rounds=2)
    share = np.divide(positive, known, out=np.zeros((40, 4)), where=known > 0)
    np.testing.assert_allclose(found.scores, np.where(labels == -1, share, labels), atol=1e-6)
    np.testing.assert_array_equal(found.labels == -1, known == 0)
    assert found.num_rounds == 2 and (known == 0).any() and ((known > 0) & (labels == -1)).any()
    with pytest.raises(ValueError, match="tolerance"):
        soft_label_propagation(graph, labels, tolerance=0.0)


# --- diffusion


def dense_solution(graph, right, alpha):
    weights = graph.toarray()
    root = np.sqrt(weights.sum(1))
    normalised = weights / np.outer(root, root)
    return scipy.linalg.solve(np.eye(len(weights)) - alpha * normalised, right.astype(float))


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
def test_single_label_diffusion_against_a_dense_solver(alpha, balance):
    points, classes = clusters(150, spread=0.8)
    graph, labels = cosine_graph(*knn(points, 10)), partly(classes)
    found = diffusion(graph, labels, multi_label=False, alpha=alpha, balance=balance, tolerance=1e-9)
    mass = (labels == 1).astype(float)
    mass = dense_solution(graph, mass / mass.sum(0) if balance else mass, alpha)
    total = mass.sum(1, keepdims=True)
    unknown = (labels[:, 0] == -1) & (total[:, 0] > 1e-12)
    assert unknown.any() == (alpha > 0)
    share = mass[unknown] / total[unknown]
    np.testing.assert_allclose(found.scores[unknown], share, atol=1e-6)
    np.testing.assert_array_equal(found.labels[unknown], np.eye(4)[mass[unknown].argmax(1)])
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-300)), axis=1)
    np.testing.assert_allclose(found.weights[unknown], 1 - entropy / np.log(4), atol=1e-6)
    np.testing.assert_array_equal(found.weights[labels[:, 0] != -1], 1)


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_multi_label_diffusion_against_a_dense_solver(unknown, monkeypatch):
    monkeypatch.setattr("jaxmlic.propagation.methods._COLUMNS", 3)  # two blocks of classes
    points, _ = clusters(150)
    graph, labels = cosine_graph(*knn(points, 10)), several(150, unknown=unknown)
    found = diffusion(graph, labels, alpha=0.9, tolerance=1e-9)
    share = dense_solution(graph, labels == 1, 0.9) / dense_solution(graph, labels != -1, 0.9)
    np.testing.assert_allclose(found.scores, np.where(labels == -1, share, labels), atol=1e-6)
    np.testing.assert_array_equal(found.labels, np.where(labels == -1, share >= 0.5, labels))
    inside = np.clip(share, 1e-300, 1 - 1e-16)
    entropy = -(inside * np.log(inside) + (1 - inside) * np.log1p(-inside)) / np.log(2)
    certain = np.where(labels == -1, 1 - entropy, 1)
    np.testing.assert_allclose(found.weights, certain.mean(1), atol=1e-5)


def test_twenty_steps_as_in_iscens_code():
    """Their loop over classes with scipy's conjugate gradients, balanced seeds and 20 steps, which do not converge."""
    points, classes = clusters(150, spread=0.8)
    graph, labels = cosine_graph(*knn(points, 10)), partly(classes)
    found = diffusion(graph, labels, multi_label=False, balance=True, max_steps=20)
    weights = graph.toarray()
    root = weights.sum(1) ** -0.5
    matrix = np.eye(150) - 0.99 * (root[:, None] * weights * root)
    solved = np.zeros((150, 4))
    for c in range(4):
        seeds = (labels[:, c] == 1).astype(float)
        solved[:, c], _ = sparse.linalg.cg(matrix, seeds / seeds.sum(), rtol=1e-6, maxiter=20)
    solved = np.maximum(solved, 0)
    share = solved / solved.sum(1, keepdims=True)
    unknown = labels[:, 0] == -1
    np.testing.assert_allclose(found.scores[unknown], share[unknown], atol=1e-5)
    np.testing.assert_array_equal(found.labels[unknown], np.eye(4)[share.argmax(1)][unknown])
    assert found.num_rounds == 20
    until = diffusion(graph, labels, multi_label=False, balance=True)
    assert until.num_rounds > 20 and np.abs(until.scores - found.scores).max() > 1e-5


# --- decisions


def test_doubtful_labels_stay_unknown():
    labels = np.full((4, 3), -1, np.int8)
    labels[0] = [1, 0, -1]
    scores = np.float32([[1, 0, 0.4], [0.3, 0.5, 0.29], [0.49, 0.9, 0.0], [0.0, 0.0, 0.0]])
    found = np.where(labels == -1, scores >= 0.5, labels).astype(np.int8)
    found[3] = -1  # not reached
    result = leave_unknown(PseudoLabels(found, scores, np.ones(4, np.float32), 1), labels, 0.3, 0.5)
    np.testing.assert_array_equal(result.labels, [[1, 0, -1], [-1, 1, 0], [-1, 1, 0], [-1, -1, -1]])
    one = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], np.int8)
    known = np.array([[1, 0, 0], *[[-1] * 3] * 3], np.int8)
    scores = np.float32([[1, 0, 0], [0.3, 0.4, 0.3], [0.1, 0.5, 0.4], [0.2, 0.1, 0.7]])
    result = leave_unknown(PseudoLabels(one, scores, np.ones(4, np.float32), 1), known, 0.0, 0.5, multi_label=False)
    np.testing.assert_array_equal(result.labels, [one[0], [-1] * 3, one[2], one[3]])


def test_weights_by_hand():
    labels = np.array([[1, 0], [-1, -1], [-1, 1], [-1, -1]], np.int8)
    scores = np.float32([[1, 0], [0.75, 0.1], [0.5, 1], [0, 0]])
    found = PseudoLabels(np.array([[1, 0], [1, 0], [1, 1], [-1, -1]], np.int8), scores, np.zeros(4, np.float32), 1)

    def sure(p):
        return 1 + p * np.log2(p) + (1 - p) * np.log2(1 - p)

    expected = {
        "one": [1, 1, 1, 0],
        "scores": [1, (0.75 + 0.9) / 2, (0.5 + 1) / 2, 0],
        "entropy": [1, (sure(0.75) + sure(0.1)) / 2, (0 + 1) / 2, 0],
    }
    assert set(expected) == set(WEIGHTS)
    for kind, wanted in expected.items():
        np.testing.assert_allclose(weigh(found, labels, kind).weights, wanted, atol=1e-6)
    one = np.array([[1, 0], [-1, -1], [-1, -1]], np.int8)
    found = PseudoLabels(
        np.array([[1, 0], [1, 0], [-1, -1]], np.int8), np.float32([[1, 0], [0.75, 0.25], [0, 0]]), None, 1
    )
    for kind, wanted in {"one": 1, "scores": 0.75, "entropy": sure(0.75)}.items():
        np.testing.assert_allclose(weigh(found, one, kind, multi_label=False).weights, [1, wanted, 0], atol=1e-6)


def test_diffusion_refuses():
    labels = np.array([[1, 0], [0, 1]], np.int8)
    for options in ({"alpha": 1.0}, {"alpha": -0.1}, {"alpha": float("nan")}, {"balance": True}):
        with pytest.raises(ValueError, match="alpha"):
            diffusion(complete(2), labels, **options)
    for tolerance in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="tolerance"):
            diffusion(complete(2), labels, tolerance=tolerance)


def test_labels_by_frequency_by_hand():
    """Four labelled images, five found, one not; of the labels 1/2, 1/4, none, and 2/3 of the three that are known."""
    labels = np.full((10, 4), -1, np.int8)
    labels[:4] = [[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, -1]]
    scores = np.zeros((10, 4), np.float32)
    scores[4:, 0] = [0.1, 0.4, 0.3, 0.2, 0.4, 0.0]  # half of five, 2.5, rounded to even
    scores[4:, 1] = [0.2, 0.2, 0.1, 0.2, 0.2, 0.2]  # a quarter, 1.25: of equals the first
    scores[4:, 2] = 0.9  # nobody had it
    scores[3:, 3] = [0.0, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0]  # two thirds of six, four, but only one has a score
    found = np.where(labels == -1, 0, labels).astype(np.int8)
    found[9] = -1  # not reached: no share of any label is its own
    scores[9] = 0.8
    weights = np.linspace(0, 1, 10, dtype=np.float32)
    result = by_frequency(PseudoLabels(found, scores, weights, 3), labels)
    np.testing.assert_array_equal(result.labels[:3], labels[:3])
    np.testing.assert_array_equal(result.labels[9], -1)
    for c, images in {0: [5, 8], 1: [4], 2: [], 3: [5]}.items():
        assert np.flatnonzero(result.labels[3:, c] == 1).tolist() == [i - 3 for i in images]
    assert (result.labels[3:9] >= 0).all() and result.weights is weights and result.num_rounds == 3


def test_frequencies_are_those_of_the_labelled():
    points, _ = clusters(400)
    labels = several(400, every=4)
    for found in (
        diffusion(cosine_graph(*knn(points, 10)), labels, alpha=0.9),
        improved_label_propagation(heat_kernel_graph(*knn(points, 10, "euclidean")), labels),
    ):
        shares = (by_frequency(found, labels).labels[labels[:, 0] == -1] == 1).mean(0)
        np.testing.assert_allclose(shares, (labels[::4] == 1).mean(0), atol=1 / 300)


def test_class_weights_by_hand():
    labels = np.array([[1, 0, -1], [1, 1, -1], [1, -1, 0]], np.int8)
    np.testing.assert_allclose(class_weights(labels), [4 / 9, 4 / 3, 1])  # 3, 1 and 0 of a mean of 4/3
    assert class_weights(labels).dtype == np.float32
