"""The pointing game by hand: pairs, highest points, hits, means over classes."""

import numpy as np
import pytest

from jaxmlic.errors import UserError
from jaxmlic.evaluation import pointing


def boxes(*entries):
    """Of one image: (label, ymin, xmin, ymax, xmax)."""
    return {
        "bbox": np.array([e[1:] for e in entries], np.float32).reshape(-1, 4),
        "label": np.array([e[0] for e in entries]),
    }


def test_pairs_are_labels_that_the_image_has_and_boxes_for():
    images = [
        boxes((0, 0, 0, 0.4, 0.4), (1, 0.5, 0.5, 0.9, 0.9), (0, 0.0, 0.6, 0.2, 0.8)),
        boxes((1, 0, 0, 1, 1)),
        boxes(),
        boxes((0, 0, 0, 0.9, 0.9), (2, 0, 0, 0.1, 0.1)),
    ]
    labels = np.array([[1, -1, 0], [0, 1, 0], [1, 1, 1], [1, 0, 1]], np.int8)
    pairs = pointing.pairs_of(images, labels)
    assert list(zip(pairs.rows.tolist(), pairs.labels.tolist(), strict=True)) == [(0, 0), (1, 1), (3, 0), (3, 2)]
    assert [len(own) for own in pairs.boxes] == [2, 1, 1, 1]
    # 0.16 + 0.04 of the image; the whole of it, alone; most of it; a hundredth beside another label.
    assert pairs.hard.tolist() == [True, False, False, True]
    with pytest.raises(UserError, match="nothing to point at"):
        pointing.pairs_of(images, np.zeros((4, 3), np.int8))


def test_boxes_that_overlap_cover_once():
    own = np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0, 0, 0.5, 0.5]])
    assert abs(pointing._covered(own) - (0.25 + 0.25 - 0.0625)) < 0.01


def test_the_highest_point():
    values = np.zeros((4, 5))
    values[1, 3] = 1
    np.testing.assert_allclose(pointing.peak(values), [1.5 / 4, 3.5 / 5])
    values[3, 3] = 1
    np.testing.assert_allclose(pointing.peak(values), [2.5 / 4, 3.5 / 5])
    assert np.isnan(pointing.peak(np.full((3, 3), 2.0))).all()
    noisy = np.zeros((50, 50))
    noisy[5, 5] = 1.0  # one pixel loses against a region once blurred
    noisy[30:36, 30:36] = 0.6
    np.testing.assert_allclose(pointing.peak(noisy, 0.04), [33 / 50, 33 / 50])


def test_hits_and_means_against_loops():
    rng = np.random.default_rng(2)
    own = [np.sort(rng.random((2, 2, 2)), axis=1).reshape(2, 4) for _ in range(40)]
    pairs = pointing.Pairs(np.arange(40), rng.integers(0, 3, 40), own, rng.random(40) < 0.4)
    points = rng.random((40, 2))
    points[7] = np.nan
    there = rng.random(40) < 0.8
    found = pointing.score("m", points, there, pairs, 4, tolerance=0.05)

    def hit(point, own):
        return any(y0 - 0.05 <= point[0] <= y1 + 0.05 and x0 - 0.05 <= point[1] <= x1 + 0.05 for y0, x0, y1, x1 in own)

    def share(where, among):
        means = []
        for label in range(4):
            own = [hit(where[i], pairs.boxes[i]) for i in range(40) if among[i] and pairs.labels[i] == label]
            means += [sum(own) / len(own)] if own else []
        return np.mean(means)

    centre = np.full((40, 2), 0.5)
    assert found.pairs.tolist() == [sum(there & (pairs.labels == c)) for c in range(4)]
    assert found.hits.sum() == sum(hit(points[i], pairs.boxes[i]) for i in range(40) if there[i])
    np.testing.assert_allclose(
        [found.share, found.hard_share, found.centre, found.hard_centre],
        [share(w, a) for w in (points, centre) for a in (there, there & pairs.hard)],
    )
    none = pointing.score("m", points, np.zeros(40, bool), pairs, 4, tolerance=0.0)
    assert np.isnan(none.share) and none.pairs.sum() == 0
    with pytest.raises(UserError, match="tolerance"):
        pointing.score("m", points, there, pairs, 4, tolerance=-1)
