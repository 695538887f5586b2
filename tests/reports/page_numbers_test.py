"""The page's numbers against scikit-learn, loops and brute force, and their bounds."""

import base64

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import precision_recall_curve

from jaxmlic.reports.page import gallery, numbers

RNG = np.random.default_rng(4)
LABELS = RNG.choice(np.array([1, 0, -1], np.int8), (60, 5), p=[0.35, 0.55, 0.1])
LABELS[:, 4] = 0
SCORES = np.round(RNG.normal(size=(60, 5)) + LABELS, 1).astype(np.float32)  # with ties
PREDICTED = SCORES > 0.5


def test_curves_are_scikit_learn_s_at_the_positives():
    found = numbers.precision_recall(SCORES, LABELS)
    assert found[4] is None
    for c in range(4):
        known = LABELS[:, c] >= 0
        precision, recall, _ = precision_recall_curve(LABELS[known, c] == 1, SCORES[known, c])
        expected = {(round(1000 * r), round(1000 * p)) for r, p in zip(recall, precision, strict=True)}
        points = set(zip(*found[c], strict=True))
        assert points <= expected
        assert max(found[c][0]) == 1000 and found[c][0] == sorted(found[c][0])


def test_long_curves_are_thinned_with_both_ends_kept():
    labels = np.ones((5000, 1), np.int8)
    labels[::3] = 0
    scores = RNG.normal(size=(5000, 1)).astype(np.float32)
    ((recall, _),) = numbers.precision_recall(scores, labels)
    assert len(recall) == numbers.POINTS and recall[-1] == 1000 and recall[0] <= 1
    history = [{"step": i, "epoch": i / 10, "train/loss": 1 / (i + 1), "val/protocol": "voc"} for i in range(3000)]
    curves = numbers.curves([*history, {"step": 7, "train/loss": None}])
    assert list(curves) == ["train/loss"]
    steps, values = curves["train/loss"]
    assert len(steps) == len(values) == 400 and steps[0] == 0 and steps[-1] == 2999 and values[0] == 1.0


def test_confusion_counts_what_a_loop_counts():
    found = numbers.confusion(LABELS, PREDICTED)
    for i in range(5):
        for j in range(5):
            if i == j:
                expected = sum(LABELS[n, i] == 1 and not PREDICTED[n, i] for n in range(60))
            else:
                expected = sum(LABELS[n, i] == 1 and PREDICTED[n, j] and LABELS[n, j] == 0 for n in range(60))
            assert found[i, j] == expected
    positives = (LABELS == 1).sum(axis=0)
    shown = numbers.confused(found, positives)
    assert shown["classes"] == [0, 1, 2, 3, 4]
    assert shown["matrix"][4] == [None] * 5
    assert shown["matrix"][0][1] == round(found[0, 1] / positives[0], 3)
    beside = shown["beside"][0]
    assert [n for _, n in beside] == sorted((int(found[0, j]) for j in range(1, 5) if found[0, j]), reverse=True)


def test_the_graph_of_the_data_and_the_predictions():
    classes = numbers.graph_classes(LABELS, [PREDICTED])
    found = numbers.graph_of(LABELS, PREDICTED, classes)

    def both(table, i, j):
        return int((table[:, i] & table[:, j]).sum())

    data, own = LABELS == 1, PREDICTED & (LABELS >= 0)
    assert found["data"][0][1] == round(both(data, 0, 1) / data[:, 0].sum(), 3)
    assert found["predicted"][2][3] == round(both(own, 2, 3) / own[:, 2].sum(), 3)
    assert found["data"][0][0] is None and found["data"][4] == [None] * 5
    differences = [abs(a - b) for _, _, a, b in found["pairs"]]
    assert differences == sorted(differences, reverse=True) and min(differences) > 0
    for i, j, a, b in found["pairs"]:
        assert (a, b) == (both(data, i, j), both(own, i, j))


def test_the_plane_is_scikit_learn_s_pca_of_directions():
    table = RNG.normal(size=(6, 4))
    found = numbers.plane(table)
    pca = PCA(2)
    expected = pca.fit_transform(table / np.linalg.norm(table, axis=1, keepdims=True))
    for k, axis in enumerate("xy"):
        np.testing.assert_allclose(np.abs(found[axis]), np.abs(expected[:, k]), atol=1e-4)
    assert found["caption"] == f"PCA, {100 * pca.explained_variance_ratio_.sum():.0f}% of the variance"


def test_the_worst_mistakes_are_those_of_a_full_sort():
    found = gallery.worst(SCORES, LABELS, PREDICTED, 3)
    for c in range(5):
        wrong = [n for n in range(60) if PREDICTED[n, c] and LABELS[n, c] == 0]
        missed = [n for n in range(60) if not PREDICTED[n, c] and LABELS[n, c] == 1]
        assert found.wrong[c] == sorted(wrong, key=lambda n: (-SCORES[n, c], n))[:3]
        assert found.missed[c] == sorted(missed, key=lambda n: (SCORES[n, c], n))[:3]


def test_photographs_go_to_the_worst_of_every_class_first():
    mistakes = gallery.Mistakes([[1, 2, 3], [4, 5], []], [[1], [6], [7, 8]])
    ap = np.array([0.9, 0.2, np.nan])
    assert gallery.shown(mistakes, ap, 4) == [4, 6, 1, 7]
    assert gallery.shown(mistakes, ap, 100) == [4, 6, 1, 7, 5, 2, 8, 3]
    assert gallery.shown(mistakes, ap, 0) == []


def test_a_packed_map_keeps_its_order_and_its_highest_point():
    rows, columns, text, place = gallery.packed(np.array([[0.0, 1.0], [3.0, 2.0]]))
    assert (rows, columns, place) == (2, 2, [75, 25])
    assert list(base64.b64decode(text)) == [0, 85, 255, 170]
    assert gallery.packed(np.zeros((3, 3)))[3] is None
    assert gallery.packed(RNG.random((50, 50)))[:2] == [20, 20]
