"""Metrics against scikit-learn, against loops written from the definitions, and against numbers worked out by hand."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from jaxmlic import metrics
from jaxmlic.errors import UserError

NAN = float("nan")
NUMBERS = ("mAP", "CP", "CR", "CF1", "CF1_mean", "OP", "OR", "OF1", "IP", "IR", "IF1", "MAP@10", "top1")
COUNTS = ("N+", "num_classes", "num_left_out", "num_examples")


def make(seed, num_examples=60, num_classes=14, unknown=0.0, ties=False):
    """Random scores and labels; the last class has no positive, the first image none either; ties where asked."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_examples, num_classes)) < 0.25).astype(np.int8)
    labels[:, -1] = 0
    labels[0] = 0
    scores = (rng.normal(size=labels.shape) + labels).astype(np.float32)
    if ties:
        scores = np.round(scores * 2) / 2 + np.float32(0)
        scores[rng.random(scores.shape) < 0.1] *= -1  # brings -0.0 beside 0.0
    labels[rng.random(labels.shape) < unknown] = -1
    return scores, labels


# Definitions, in loops. Each takes plain Python lists.


def loop_precision_recall(scores, labels):
    """(recall, precision) at every distinct score from the top; known cells only."""
    pairs = [(s, y) for s, y in zip(scores, labels, strict=True) if y >= 0]
    total = sum(y == 1 for _, y in pairs)
    curve = []
    for cut in sorted({s for s, _ in pairs}, reverse=True):
        taken = [y for s, y in pairs if s >= cut]
        curve.append((sum(taken) / total, sum(taken) / len(taken)))
    return curve


def loop_ap(scores, labels, rule):
    if 1 not in labels:
        return NAN
    curve = loop_precision_recall(scores, labels)
    if rule == "voc07_11pt":
        tenths = [max((p for r, p in curve if r >= t / 10 - 1e-9), default=0.0) for t in range(11)]
        return sum(tenths) / 11
    if rule == "voc10":  # VOCap.m: pad, make precision monotone from the right, sum the rectangles where recall changes
        recall = [0.0] + [r for r, _ in curve] + [1.0]
        precision = [0.0] + [p for _, p in curve] + [0.0]
        for i in range(len(precision) - 2, -1, -1):
            precision[i] = max(precision[i], precision[i + 1])
        return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))
    area, last = 0.0, 0.0
    for recall, precision in curve:
        area, last = area + (recall - last) * precision, recall
    return area


def loop_order(row):
    return sorted(range(len(row)), key=lambda c: (-row[c], c))


def loop_decision(scores, decision, k, threshold):
    chosen = []
    for row in scores.tolist():
        best = set(loop_order(row)[:k]) if k else set(range(len(row)))
        above = {c for c in range(len(row)) if decision == "forced" or row[c] >= threshold}
        chosen.append([c in best & above for c in range(len(row))])
    return chosen


def divide(a, b, empty):
    return a / b if b else empty


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else NAN


def harmonic(a, b):
    return 0.0 if a == 0 and b == 0 else 2 / (1 / a + 1 / b) if a and b else a * b


def loop_report(scores, labels, chosen, rule, min_positives=1):
    n, c_all = labels.shape
    y, s = labels.tolist(), scores.tolist()
    ap, cp, cr, cf, seen = [], [], [], [], 0
    tp = pred = pos = 0
    for c in range(c_all):
        cells = [(chosen[i][c], y[i][c]) for i in range(n) if y[i][c] != -1]
        t, p, g = sum(a and b == 1 for a, b in cells), sum(a for a, _ in cells), sum(b == 1 for _, b in cells)
        tp, pred, pos = tp + t, pred + p, pos + g
        if g < min_positives:
            ap.append(NAN)
            continue
        ap.append(loop_ap([s[i][c] for i in range(n)], [y[i][c] for i in range(n)], rule))
        cp.append(divide(t, p, 0.0))
        cr.append(t / g)
        cf.append(harmonic(cp[-1], cr[-1]))
        seen += t > 0
    ip, ir, map10, top1 = [], [], [], []
    for i in range(n):
        known = [c for c in range(c_all) if y[i][c] != -1]
        g = sum(y[i][c] == 1 for c in known)
        if not g:
            continue
        t, p = sum(chosen[i][c] and y[i][c] == 1 for c in known), sum(chosen[i][c] for c in known)
        ip.append(divide(t, p, 0.0))
        ir.append(t / g)
        hits, total = 0, 0.0
        for place, c in enumerate(sorted(known, key=lambda c: (-s[i][c], c))[:10], 1):
            if y[i][c] == 1:
                hits += 1
                total += hits / place
        map10.append(total / min(10, g))
        top1.append(y[i][max(known, key=lambda c: (s[i][c], -c))] == 1)
    any_known = any(v != -1 for row in y for v in row)
    op, orc = divide(tp, pred, 0.0) if any_known else NAN, divide(tp, pos, NAN)
    return {
        "mAP": mean(a for a in ap if a == a), "AP": ap,
        "CP": mean(cp), "CR": mean(cr), "CF1": harmonic(mean(cp), mean(cr)), "CF1_mean": mean(cf), "N+": seen,
        "OP": op, "OR": orc, "OF1": harmonic(op, orc),
        "IP": mean(ip), "IR": mean(ir), "IF1": harmonic(mean(ip), mean(ir)), "MAP@10": mean(map10), "top1": mean(top1),
        "num_classes": len(cp), "num_left_out": c_all - len(cp), "num_examples": n,
    }  # fmt: skip


def assert_same(report, expected):
    for key in (*NUMBERS, *COUNTS, "AP"):
        np.testing.assert_allclose(report[key], expected[key], rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("ap", ["all_point", "voc10", "voc07_11pt"])
@pytest.mark.parametrize(
    ("decision", "rule", "k"),
    [("threshold", "threshold", None), ("top3_forced", "forced", 3), ("top3_thresholded", "thresholded", 3),
     ("top5_forced", "forced", 5), ("top12_forced", "forced", 12), ("path", "path", None)],
)  # fmt: skip
@pytest.mark.parametrize(("unknown", "ties"), [(0.0, False), (0.3, False), (0.0, True), (0.3, True)])
def test_every_number_equals_the_loops(ap, decision, rule, k, unknown, ties):
    scores, labels = make(7, unknown=unknown, ties=ties)
    path = np.random.default_rng(1).random(scores.shape) < 0.2
    chosen = path.tolist() if decision == "path" else loop_decision(scores, rule, k, 0.0)
    report = metrics.evaluate(scores, labels, f"{ap}+{decision}", chosen=path)
    assert_same(report, loop_report(scores, labels, chosen, ap))
    assert report["threshold"] == (0.0 if "threshold" in rule else None)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_ap_equals_scikit_learn(dtype):
    """float16-rounded sigmoids make thousands of ties."""
    rng = np.random.default_rng(3)
    labels = (rng.random((4000, 12)) < np.linspace(0.001, 0.6, 12)).astype(np.int8)
    labels[0] = 1
    scores = (1 / (1 + np.exp(-(3 * rng.normal(size=labels.shape) + labels)))).astype(dtype)
    if dtype == np.float16:
        assert len(np.unique(scores)) < scores.size / 5
    report = metrics.evaluate(scores, labels)
    np.testing.assert_allclose(report["AP"], average_precision_score(labels, scores, average=None), rtol=1e-12)
    np.testing.assert_allclose(report["mAP"], average_precision_score(labels, scores, average="macro"), rtol=1e-12)
    predicted = scores >= 0.5
    assert report["threshold"] == 0.5
    for key, average, function in (("CP", "macro", precision_score), ("CR", "macro", recall_score),
                                   ("CF1_mean", "macro", f1_score), ("OP", "micro", precision_score),
                                   ("OR", "micro", recall_score), ("OF1", "micro", f1_score)):  # fmt: skip
        expected = function(labels, predicted, average=average, zero_division=0)
        np.testing.assert_allclose(report[key], expected, rtol=1e-12, err_msg=key)


def test_four_images_two_classes_by_hand():
    scores = np.array([[2.0, -1.0], [1.0, 3.0], [0.5, -2.0], [-1.0, 1.0]])
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.int8)
    report = metrics.evaluate(scores, labels)
    # Class 0 ranks + - + -: (1 + 2/3) / 2. Class 1 ranks + - - +: (1 + 2/4) / 2.
    np.testing.assert_allclose(report["AP"], [5 / 6, 3 / 4])
    expected = {
        "mAP": 19 / 24,
        "CP": (2 / 3 + 1 / 2) / 2, "CR": (1 + 1 / 2) / 2, "CF1": 2 * (7 / 12) * (3 / 4) / (4 / 3),
        "CF1_mean": (4 / 5 + 1 / 2) / 2, "N+": 2,
        "OP": 3 / 5, "OR": 3 / 4, "OF1": 6 / 9,
        "IP": (1 + 1 / 2 + 1) / 3, "IR": (1 + 1 + 1 / 2) / 3, "IF1": 5 / 6,
        "MAP@10": 1.0, "top1": 1.0,
    }  # fmt: skip
    for key, value in expected.items():
        assert report[key] == pytest.approx(value, abs=1e-12), key
    assert (report["protocol"], report["threshold"]) == ("all_point", 0.0)
    assert (report["num_classes"], report["num_left_out"], report["num_examples"]) == (2, 0, 4)


def test_accuracy_is_for_single_label_data():
    scores = np.array([[2.0, -1.0, 0.0], [1.0, 3.0, 0.0], [0.5, 1.0, 0.7]])
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.int8)
    assert metrics.evaluate(scores, labels)["accuracy"] == pytest.approx(2 / 3)  # sklearn's accuracy of the arg max
    for row in ([0, 1, 1], [0, 0, 0], [-1, 1, 0]):  # two labels, none, an unknown one
        assert np.isnan(metrics.evaluate(scores, np.array([*labels[:2], row], np.int8))["accuracy"])


def test_eleven_points_by_hand():
    # Ranking + - + - -; recall 0.5 at precision 1, recall 1 at precision 2/3: six points of 1, five of 2/3.
    scores, labels = np.array([[5.0], [4], [3], [2], [1]]), np.array([[1], [0], [1], [0], [0]], np.int8)
    assert metrics.evaluate(scores, labels, "voc07_11pt")["mAP"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    # Ten positives, one at the top and nine after ten negatives: recall exactly t/10 must count as reached.
    labels = np.array([1] + [0] * 10 + [1] * 9, np.int8)[:, None]
    scores = -np.arange(20.0)[:, None]
    assert metrics.evaluate(scores, labels, "voc07_11pt")["mAP"] == pytest.approx((2 * 1 + 9 * 0.5) / 11)


def test_the_envelope_lifts_a_dip():
    # Ranking - + +: precisions at the positives 1/2 and 2/3.
    scores, labels = np.array([[3.0], [2], [1]]), np.array([[0], [1], [1]], np.int8)
    assert metrics.evaluate(scores, labels)["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.evaluate(scores, labels, "voc10")["mAP"] == pytest.approx(2 / 3)


def test_the_two_class_f1s_differ():
    # Class 0: precision 1, recall 1/2. Class 1: the other way round. Both F1s are 2/3, both averages 3/4.
    scores, labels = np.array([[1.0, 1], [-1, 1], [-1, -1]]), np.array([[1, 1], [1, 0], [0, 0]], np.int8)
    report = metrics.evaluate(scores, labels)
    assert (report["CF1"], report["CF1_mean"]) == (pytest.approx(3 / 4), pytest.approx(2 / 3))


def test_equal_scores_enter_together():
    labels = np.array([[1], [0], [0], [1], [0]], np.int8)
    assert metrics.evaluate(np.zeros((5, 1)), labels)["mAP"] == pytest.approx(2 / 5)
    assert metrics.evaluate(np.array([[0.0], [-0.0], [-0.0], [-0.0], [0.0]]), labels)["mAP"] == pytest.approx(2 / 5)


def test_top_k_ties_by_class_index():
    scores = np.array(
        [[1.0, 2, 2, 0, -0.0, -3], [0, 0, 0, 0, 0, 0], [-np.inf, np.inf, 0, -1, 1e-45, -1e-45]], np.float32
    )
    np.testing.assert_array_equal(metrics.top_k(scores, 4), [[1, 2, 0, 3], [0, 1, 2, 3], [1, 4, 2, 5]])
    known = np.array([[1, 0, 1, 1, 1, 1]] * 3, bool)
    np.testing.assert_array_equal(metrics.top_k(scores, 99, known)[:, -1], [1, 1, 1])
    assert metrics.top_k(scores, 99).shape == (3, 6)


def test_unknown_cells_are_as_if_deleted():
    """Per class: rows deleted. Overall: the sums of those. Per image, with a threshold: columns deleted."""
    scores, labels = make(5, unknown=0.4)
    report = metrics.evaluate(scores, labels, "voc10")
    for c in range(labels.shape[1]):
        known = labels[:, c] >= 0
        alone = metrics.evaluate(scores[known, c : c + 1], labels[known, c : c + 1], "voc10")
        np.testing.assert_equal(report["AP"][c], alone["AP"][0])
    for i in range(1, 20):
        known = labels[i] >= 0
        whole = metrics.evaluate(scores[i : i + 1], labels[i : i + 1])
        deleted = metrics.evaluate(scores[i : i + 1, known], labels[i : i + 1, known])
        for key in ("IP", "IR", "IF1", "OP", "OR", "OF1", "MAP@10", "top1"):
            np.testing.assert_equal(whole[key], deleted[key], err_msg=key)


def test_a_forced_pick_of_an_unknown_label_spends_a_place():
    scores = np.array([[4.0, 3, 2, 1, 0]])
    labels = np.array([[1, -1, 0, 1, 0]], np.int8)
    report = metrics.evaluate(scores, labels, "top3_forced")
    assert (report["OP"], report["OR"], report["IP"], report["IR"]) == (0.5, 0.5, 0.5, 0.5)


def test_rows_may_be_permuted_and_scores_transformed():
    scores, labels = make(2, ties=True, unknown=0.1)
    order = np.random.default_rng(0).permutation(len(scores))
    for protocol in ("all_point", "voc10+top3_forced", "voc07_11pt+top3_thresholded"):
        report = metrics.evaluate(scores, labels, protocol)
        permuted = metrics.evaluate(scores[order], labels[order], protocol)
        for key in (*NUMBERS, *COUNTS, "AP"):
            np.testing.assert_allclose(permuted[key], report[key], rtol=1e-12, err_msg=key)
        moved = metrics.evaluate(np.exp(scores.astype(np.float64) / 3) - 20, labels, protocol)
        for key in ("AP", "mAP", "MAP@10", "top1"):
            np.testing.assert_array_equal(moved[key], report[key], err_msg=key)


def test_bfloat16_scores_make_ties_as_scikit_learn_sees_them():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng(0)
    labels = (rng.random((500, 4)) < 0.3).astype(np.int8)
    rounded = (rng.normal(size=labels.shape) + labels).astype(bfloat16)
    expected = average_precision_score(labels, rounded.astype(np.float32), average=None)
    np.testing.assert_allclose(metrics.evaluate(rounded, labels)["AP"], expected, rtol=1e-12)


def test_float64_scores_are_ranked_as_float32():
    scores, labels = np.array([[1.0 + 1e-12], [1.0]]), np.array([[1], [0]], np.int8)
    assert metrics.evaluate(scores, labels)["mAP"] == 0.5
    assert metrics.evaluate(np.array([[1e300], [1.0]]), labels)["mAP"] == 1.0  # overflows to inf, without a warning


def test_the_best_possible_and_the_worst():
    labels = np.array([[1, 0, 0, 1]] * 3 + [[0, 1, 1, 0]] * 2, np.int8)
    best = metrics.evaluate(np.where(labels == 1, np.inf, -np.inf), labels)
    assert all(best[key] == 1.0 for key in NUMBERS)
    worst = metrics.evaluate(-(2.0 * labels - 1), labels)
    assert all(worst[key] == 0.0 for key in NUMBERS if key not in ("mAP", "MAP@10"))
    np.testing.assert_allclose(worst["AP"], [3 / 5, 2 / 5, 2 / 5, 3 / 5])
    assert (best["N+"], worst["N+"]) == (4, 0)


def test_a_class_never_predicted_has_precision_zero_and_stays_in():
    scores = np.array([[1.0, -1], [1, -2]])
    labels = np.array([[1, 1], [1, 0]], np.int8)
    report = metrics.evaluate(scores, labels)
    assert (report["CP"], report["CR"], report["OP"], report["N+"]) == (0.5, 0.5, 1.0, 1)


def test_false_alarms_of_a_class_without_positives_count_overall_only():
    scores, labels = np.array([[1.0, 1], [1, 1]]), np.array([[1, 0], [1, 0]], np.int8)
    report = metrics.evaluate(scores, labels)
    assert (report["CP"], report["OP"], report["IP"], report["num_left_out"]) == (1.0, 0.5, 0.5, 1)
    assert math.isnan(report["AP"][1])


def test_class_mask_equals_unknown_columns():
    scores, labels = make(4, unknown=0.1)
    mask = np.arange(14) % 3 != 0
    for protocol in ("all_point", "top5_forced"):
        report = metrics.evaluate(scores, labels, protocol, classes=mask)
        k = 5 if protocol == "top5_forced" else None
        chosen = loop_decision(scores, "forced" if k else "threshold", k, 0.0)
        assert_same(report, loop_report(scores, np.where(mask, labels, -1), chosen, "all_point"))
    narrow = metrics.evaluate(scores[:, mask], labels[:, mask])
    masked = metrics.evaluate(scores, labels, classes=mask)
    for key in (*NUMBERS, "N+", "num_classes"):
        assert masked[key] == pytest.approx(narrow[key]), key


def test_min_positives():
    scores, labels = make(8, num_examples=30)
    counts = (labels == 1).sum(0)
    limit = int(np.median(counts))
    report = metrics.evaluate(scores, labels, min_positives=limit)
    assert_same(report, loop_report(scores, labels, loop_decision(scores, "threshold", None, 0.0), "all_point", limit))
    assert 0 < report["num_classes"] < 14 - 1
    np.testing.assert_array_equal(np.isnan(report["AP"]), counts < limit)


@pytest.mark.parametrize("protocol", list(metrics.PROTOCOLS))
@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3), np.int8)),
        (np.ones((4, 3)), np.zeros((4, 3), np.int8)),
        (np.ones((4, 3)), np.full((4, 3), -1, np.int8)),
    ],
)
def test_undefined_is_nan_without_a_warning(protocol, scores, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = metrics.evaluate(scores, labels, protocol, chosen=np.zeros(scores.shape, bool))
    for key in ("mAP", "CP", "CR", "CF1", "CF1_mean", "OR", "OF1", "IP", "IR", "IF1", "MAP@10", "top1"):
        assert math.isnan(report[key]), key
    assert np.isnan(report["AP"]).all()
    assert (report["N+"], report["num_classes"], report["num_left_out"]) == (0, 0, 3)
    assert math.isnan(report["OP"]) == (not (labels == 0).any())


def test_one_class_one_image():
    report = metrics.evaluate(np.array([[-1.0]]), np.array([[1]], np.int8), "top3_forced")
    assert all(report[key] == 1.0 for key in NUMBERS)
    report = metrics.evaluate(np.array([[-1.0]]), np.array([[1]], np.int8))
    assert (report["mAP"], report["OP"], report["OF1"], report["CF1"], report["IF1"]) == (1.0, 0.0, 0.0, 0.0, 0.0)


def test_unknown_picks_counted_as_wrong():
    """Every image decides for three labels, so that OP is the hits over three times the images, whatever is unknown."""
    scores, labels = make(4, num_examples=40, unknown=0.3)
    labels[:, 3] = -1
    usual, wrong = (metrics.evaluate(scores, labels, f"top3_forced{more}") for more in ("", "+unknown_wrong"))
    hits, picked = 0, np.zeros(labels.shape, bool)
    for n, row in enumerate(scores):
        for c in sorted(range(len(row)), key=lambda c: (-row[c], c))[:3]:
            hits += labels[n, c] == 1
            picked[n, c] = True
    assert wrong["OP"] == pytest.approx(hits / (3 * len(labels))) and wrong["OP"] < usual["OP"]
    included = [c for c in range(labels.shape[1]) if (labels[:, c] == 1).any()]
    precision = [(picked[:, c] & (labels[:, c] == 1)).sum() / max(picked[:, c].sum(), 1) for c in included]
    assert wrong["CP"] == pytest.approx(np.mean(precision))
    for key in ("mAP", "CR", "OR", "IR", "MAP@10", "top1"):
        assert wrong[key] == usual[key], key
    # A class outside the mask counts nowhere: not as a wrong decision either.
    mask = np.arange(labels.shape[1]) < 5
    masked = metrics.evaluate(scores, labels, "top3_forced+unknown_wrong", classes=mask)
    assert masked["OP"] == pytest.approx((picked & (labels == 1))[:, :5].sum() / picked[:, :5].sum())


def test_images_without_a_label_counted_as_zero():
    labels = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]], np.int8)
    scores = np.array([[1.0, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, -1]])
    usual, zero = metrics.evaluate(scores, labels), metrics.evaluate(scores, labels, "empty_zero")
    assert (usual["IP"], usual["IR"]) == (1.0, 0.75) and (zero["IP"], zero["IR"]) == (0.5, 0.375)
    assert zero["IF1"] == pytest.approx(3 / 7) and zero["protocol"] == "all_point+empty_zero"
    for key in ("mAP", "CP", "OP", "OR", "MAP@10", "top1"):
        assert zero[key] == usual[key], key


def test_more_than_ten_positives_in_an_image():
    labels = np.array([[1] * 12 + [0, 0], [0] + [1] * 11 + [0, 0]], np.int8)
    scores = -np.arange(14.0) * np.ones((2, 1))
    second = sum(i / (i + 1) for i in range(1, 10)) / 10  # the first place is wrong, the other nine are right
    assert metrics.evaluate(scores, labels)["MAP@10"] == pytest.approx((1 + second) / 2)


def test_threshold_rule():
    labels = np.array([[1, 0, 1]], np.int8)
    probabilities, logits = np.array([[0.5, 0.4, 1.0]]), np.array([[0.5, 0.4, 1.1]])
    assert metrics.evaluate(probabilities, labels)["threshold"] == 0.5
    assert metrics.evaluate(probabilities, labels)["OP"] == 1.0  # 0.5 itself is predicted
    assert metrics.evaluate(logits, labels)["threshold"] == 0.0
    assert metrics.evaluate(logits, labels)["OP"] == pytest.approx(2 / 3)
    report = metrics.evaluate(probabilities, labels, threshold=0.8)
    assert (report["threshold"], report["OR"]) == (0.8, 0.5)
    # 0.8 is not a float32; a score stored as float32 0.8 is still predicted at 0.8.
    assert metrics.evaluate(np.array([[0.8]], np.float32), labels[:, :1], threshold=0.8)["OR"] == 1.0


@pytest.mark.parametrize(("ties", "unknown"), [(True, 0.0), (False, 0.3)])
def test_best_threshold_by_trying_all(ties, unknown):
    scores, labels = make(9, num_examples=25, ties=ties, unknown=unknown)
    best = max(
        (metrics.evaluate(scores, labels, threshold=float(t))["OF1"], float(t)) for t in np.unique(scores[labels >= 0])
    )
    threshold, f1 = metrics.best_threshold(scores, labels)
    assert f1 == pytest.approx(best[0], abs=1e-12)
    assert metrics.evaluate(scores, labels, threshold=threshold)["OF1"] == pytest.approx(f1, abs=1e-12)
    assert threshold == pytest.approx(best[1])


def test_best_threshold_takes_the_highest_of_equals_and_survives_no_positives():
    scores, labels = np.array([[4.0, 3, 2, 1]]), np.array([[1, 0, 0, 1]], np.int8)
    assert metrics.best_threshold(scores, labels) == (4.0, pytest.approx(2 / 3))  # at 1.0 too: 2 * 2 / (4 + 2)
    assert all(math.isnan(v) for v in metrics.best_threshold(scores, np.zeros((1, 4), np.int8)))


def test_protocol_names():
    assert list(metrics.PROTOCOLS) == [
        "all_point", "voc10", "voc07_11pt", "top3_forced", "top3_thresholded", "top5_forced", "path",
        "top3_forced+unknown_wrong", "all_point+empty_zero",
    ]  # fmt: skip
    for name, protocol in metrics.PROTOCOLS.items():
        assert metrics.get_protocol(name) == protocol
        assert protocol.name == name
        assert protocol.description
    assert metrics.get_protocol("all_point+top5_forced").name == "top5_forced"
    assert metrics.get_protocol("voc10+threshold").name == "voc10"
    wide = metrics.get_protocol("voc07_11pt+top10_thresholded")
    assert (wide.name, wide.ap, wide.decision, wide.k) == (
        "voc07_11pt+top10_thresholded", "voc07_11pt", "thresholded", 10
    )  # fmt: skip
    both = metrics.get_protocol("empty_zero+top2_forced+unknown_wrong")
    assert both.name == "top2_forced+unknown_wrong+empty_zero" and both.unknown_wrong and both.empty_zero
    with pytest.raises(AttributeError):
        wide.k = 4
    report = metrics.evaluate(*make(0), protocol="all_point+top5_forced")
    assert report["protocol"] == "top5_forced"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "top0_forced",
        "top3",
        "top3_forced+voc10",
        "voc10+voc10",
        "voc10+",
        "path+path",
        "unknown_wrong+unknown_wrong",
        None,
    ],
)
def test_unknown_protocol(name):
    with pytest.raises(UserError, match=r"unknown protocol .* all_point, voc10"):
        metrics.get_protocol(name)


def test_unknown_protocol_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'top3_forced'"):
        metrics.evaluate(*make(0), protocol="top3_force")


def test_wrong_input_is_named():
    scores, labels = make(0)
    bad = scores.copy()
    bad[3, 7] = bad[5, 1] = np.nan
    for error, call in (
        ("row 3, column 7 \\(2 NaN", lambda: metrics.evaluate(bad, labels)),
        ("row 3, column 7", lambda: metrics.best_threshold(bad, labels)),
        ("must be \\[N, C\\]", lambda: metrics.evaluate(scores[:, :3], labels)),
        ("must be \\[N, C\\]", lambda: metrics.evaluate(scores[0], labels[0])),
        ("C >= 1", lambda: metrics.evaluate(scores[:, :0], labels[:, :0])),
        ("integers", lambda: metrics.evaluate(scores, labels.astype(float))),
        ("range from 0 to 2", lambda: metrics.evaluate(scores, labels * 2)),
        ("needs chosen", lambda: metrics.evaluate(scores, labels, "path")),
        ("chosen must be bool", lambda: metrics.evaluate(scores, labels, "path", chosen=labels)),
        ("classes must be bool \\[14\\]", lambda: metrics.evaluate(scores, labels, classes=np.ones(3, bool))),
        ("min_positives", lambda: metrics.evaluate(scores, labels, min_positives=0)),
        ("threshold is NaN", lambda: metrics.evaluate(scores, labels, threshold=NAN)),
        ("unknown AP rule", lambda: metrics.average_precision(scores, labels, "11pt")),
    ):
        with pytest.raises(ValueError, match=error):
            call()


def test_inputs_are_left_alone():
    scores, labels = make(6, unknown=0.2, ties=True)
    chosen = scores > 0.3
    copies = scores.copy(), labels.copy(), chosen.copy()
    metrics.evaluate(scores, labels, "path", chosen=chosen, classes=np.arange(14) > 2)
    metrics.evaluate(scores, labels, "top3_thresholded")
    metrics.best_threshold(scores, labels)
    for before, after in zip(copies, (scores, labels, chosen), strict=True):
        assert before.tobytes() == after.tobytes()


def test_importing_needs_neither_jax_nor_flax():
    code = "import sys, jaxmlic.metrics; print(sorted({'jax', 'flax', 'sklearn', 'scipy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
