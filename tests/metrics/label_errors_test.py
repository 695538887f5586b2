"""Rankings of likely label errors against cleanlab and a transcription in loops, and where there is little to rank."""

import math

import numpy as np
import pytest

from jaxmlic.metrics import label_errors


@pytest.fixture(scope="module")
def judged():
    """Probabilities [80, 5] and labels that follow them loosely; class 3 is rare, a tenth is unknown."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.7, 1.3, (80, 5))
    labels = (rng.random((80, 5)) < 0.7 * p + 0.1).astype(np.int8)
    labels[:, 3] = 0
    labels[:3, 3] = 1
    labels[rng.random((80, 5)) < 0.1] = -1
    return p, labels


def transcription(p, labels):
    """(flags, margins) by Northcutt et al. (2021), one class, one image at a time."""
    flags, margins = np.zeros(p.shape, bool), np.full(p.shape, np.nan)
    for c in range(p.shape[1]):
        known = [n for n in range(len(p)) if labels[n, c] != -1]
        mean = {}
        for k in (0, 1):
            own = [p[n, c] if k else 1 - p[n, c] for n in known if labels[n, c] == k]
            mean[k] = sum(own) / len(own) if own else 2.0
        for n in known:
            q = {1: p[n, c], 0: 1 - p[n, c]}
            above = [k for k in (0, 1) if q[k] >= mean[k] - 1e-6]
            if above:
                flags[n, c] = max(above, key=lambda k: q[k]) != labels[n, c]
            shifted = {k: q[k] - mean[k] + max(mean.values()) for k in (0, 1)}
            margins[n, c] = shifted[int(labels[n, c])] / sum(shifted.values())
    return flags, margins


def test_confident_learning_is_the_transcription(judged):
    p, labels = judged
    flags, margins = transcription(p, labels)
    assert flags.any() and not flags.all()
    np.testing.assert_array_equal(label_errors.confident_errors(p, labels), flags)
    np.testing.assert_allclose(label_errors.margins(p, labels), margins, rtol=1e-12)
    rows, columns = label_errors.by_confident_learning(p, labels)
    assert len(rows) == np.count_nonzero(labels >= 0) == len(set(zip(rows.tolist(), columns.tolist(), strict=True)))
    own = flags[rows, columns]
    assert own[: flags.sum()].all() and not own[flags.sum() :].any()
    for part in (slice(None, flags.sum()), slice(flags.sum(), None)):
        assert (np.diff(margins[rows, columns][part]) >= -1e-12).all()


def test_the_loss_ranks_by_the_probability_of_the_label_given(judged):
    p, labels = judged
    rows, columns = label_errors.by_loss(p, labels)
    losses = [-math.log(p[n, c] if labels[n, c] == 1 else 1 - p[n, c]) for n, c in zip(rows, columns, strict=True)]
    assert losses == sorted(losses, reverse=True) and len(losses) == np.count_nonzero(labels >= 0)


def test_equals_cleanlab(judged):
    pytest.importorskip("cleanlab")
    from cleanlab.count import compute_confident_joint
    from cleanlab.rank import get_label_quality_scores

    p, labels = judged
    flags, margins = label_errors.confident_errors(p, labels), label_errors.margins(p, labels)
    confidences = label_errors.confidences(p, labels)
    for c in range(p.shape[1]):
        known = np.flatnonzero(labels[:, c] >= 0)
        given, two = labels[known, c].astype(int), np.stack([1 - p[known, c], p[known, c]], axis=1)
        _, wrong = compute_confident_joint(given, two, return_indices_of_off_diagonals=True)
        assert known[wrong].tolist() == np.flatnonzero(flags[:, c]).tolist()
        theirs = get_label_quality_scores(given, two, method="normalized_margin", adjust_pred_probs=True)
        # Theirs is (q - (1 - q) + 1) / 2 of the adjusted probability q, which is q.
        np.testing.assert_allclose(margins[known, c], theirs, rtol=1e-9)
        np.testing.assert_allclose(
            confidences[known, c], get_label_quality_scores(given, two, method="self_confidence")
        )


@pytest.mark.parametrize("given", [0, 1])
def test_a_class_with_one_kind_of_label_has_no_confident_error(given):
    p = np.linspace(0, 1, 7)[:, None]
    labels = np.full((7, 1), given, np.int8)
    assert not label_errors.confident_errors(p, labels).any()
    rows, _ = label_errors.by_confident_learning(p, labels)
    worst_first = list(range(7)) if given else list(range(6, -1, -1))
    assert rows.tolist() == worst_first
    assert np.isfinite(label_errors.margins(p, labels)).all()


def test_unknown_labels_are_never_errors():
    p, labels = np.full((4, 2), 0.9), np.full((4, 2), -1, np.int8)
    for ranking in label_errors.RANKINGS.values():
        rows, columns = ranking(p, labels)
        assert len(rows) == len(columns) == 0
    assert not label_errors.confident_errors(p, labels).any()


def test_ties_keep_the_order_of_images():
    p, labels = np.full((5, 1), 0.3), np.array([[1], [0], [1], [0], [1]], np.int8)
    for ranking in label_errors.RANKINGS.values():
        rows, _ = ranking(p, labels)
        assert [row for row in rows.tolist() if labels[row, 0] == 1] == [0, 2, 4]


def test_next_images_are_the_greedy_choice(judged):
    p, labels = judged
    bits = np.zeros(p.shape)
    for n, c in zip(*np.nonzero(labels == -1), strict=True):
        bits[n, c] = -sum(q * math.log2(q) for q in (p[n, c], 1 - p[n, c]) if q > 0)
    left, asked, expected = set(np.flatnonzero((labels == -1).any(1)).tolist()), [0.0] * 5, []
    while left and len(expected) < 6:
        gain = {n: sum(bits[n, c] / (1 + asked[c]) for c in range(5)) for n in sorted(left)}
        best = max(gain, key=gain.get)
        expected.append(best)
        left.remove(best)
        asked = [a + bits[best, c] for c, a in enumerate(asked)]
    assert label_errors.next_images(p, labels, 6).tolist() == expected


def test_next_images_do_not_ask_for_one_class_alone():
    p = np.array([[0.5, 0.0], [0.49, 0.0], [0.0, 0.3]])
    labels = np.array([[-1, 0], [-1, 0], [0, -1]], np.int8)
    assert label_errors.next_images(p, labels, 2).tolist() == [0, 2]  # by entropy alone it would be 0, 1
    assert label_errors.next_images(p, labels, 9).tolist() == [0, 2, 1]
    assert label_errors.next_images(p, np.zeros_like(labels), 9).tolist() == []


def test_certain_probabilities_give_no_warning():
    p, labels = np.array([[0.0, 1.0]]), np.array([[-1, -1]], np.int8)
    assert label_errors.next_images(p, labels, 1).tolist() == [0]
