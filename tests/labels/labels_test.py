"""Stratified parts: exact sizes, proportions against Algorithm 1 in plain words and chance, every class kept."""

import numpy as np
import pytest

from jaxmlic.labels.stratify import counts, part_sizes, stratified_parts, stratified_split


def long_tail(num_rows=2000, num_labels=30, seed=0):
    """Labels whose frequencies fall from a half to a handful, with some unknown."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_rows, num_labels)) < np.geomspace(0.5, 0.002, num_labels)).astype(np.int8)
    labels[(rng.random(labels.shape) < 0.05) & (labels == 0)] = -1
    return labels


def test_counts_by_hand():
    labels = np.array([[1, 0, -1], [1, -1, -1], [0, 0, -1], [1, 0, -1]], np.int8)
    present, absent, unknown = counts(labels)
    np.testing.assert_array_equal(present, [3, 0, 0])
    np.testing.assert_array_equal(absent, [1, 3, 0])
    np.testing.assert_array_equal(unknown, [0, 1, 4])
    assert [int(x.sum()) for x in counts(np.zeros((0, 3), np.int8))] == [0, 0, 0]


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 1 / 3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_a_partition_of_the_exact_size(fraction, seed):
    labels = long_tail(997)
    rest, part = stratified_split(labels, fraction, seed)
    assert rest.dtype == part.dtype == np.int64
    assert len(part) == round(997 * fraction)
    assert (np.diff(rest) > 0).all() and (np.diff(part) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, part])), np.arange(997))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_proportions_are_nearer_than_at_random(fraction):
    labels = long_tail()
    present = counts(labels)[0]
    part = stratified_split(labels, fraction, 0)[1]
    distance = np.abs(counts(labels[part])[0] - fraction * present)
    at_random = []
    for seed in range(50):
        rows = np.random.default_rng(seed).permutation(len(labels))[: len(part)]
        at_random.append(np.abs(counts(labels[rows])[0] - fraction * present).sum())
    assert distance.sum() < 0.25 * np.min(at_random)
    # Exact sizes cost the most frequent classes, which are decided last, a few rows.
    assert (distance <= 1 + 0.01 * present).all()


def test_sizes_do_not_depend_on_rows_without_positives():
    labels = np.zeros((100, 4), np.int8)
    labels[:40, 0] = 1
    labels[60:] = -1  # unknown is not positive
    _, part = stratified_split(labels, 0.25, 3)
    assert len(part) == 25
    assert np.sum(part < 40) == 10
    assert 0 < np.sum(part >= 60) < 15 or 0 < np.sum((part >= 40) & (part < 60)) < 15


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.7])
def test_rare_classes_stay_in_the_rest(fraction):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = np.zeros((200, 40), np.int8)
        for label in range(40):
            labels[rng.choice(200, rng.integers(1, 4), replace=False), label] = 1
        rest, _ = stratified_split(labels, fraction, seed)
        kept = labels[rest].any(0)
        assert kept[labels.sum(0) >= 2].all()


def test_seed_decides():
    labels = long_tail()
    first, again, other = (stratified_split(labels, 0.2, seed)[1] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert len(np.setdiff1d(first, other)) > 100


def test_extremes():
    rest, part = stratified_split(np.zeros((0, 3), np.int8), 0.5, 0)
    assert len(rest) == len(part) == 0 and rest.dtype == np.int64
    rest, part = stratified_split(np.ones((1, 1), np.int8), 0.5, 0)
    assert (len(rest), len(part)) == (1, 0)
    rest, part = stratified_split(np.zeros((10, 0), np.int8), 0.5, 0)
    assert (len(rest), len(part)) == (5, 5)
    rest, part = stratified_split(np.ones((10, 5), np.int8), 0.3, 0)  # every row alike
    assert len(part) == 3


def test_mistakes():
    with pytest.raises(ValueError, match="fraction"):
        stratified_split(np.zeros((3, 2), np.int8), 1.5, 0)
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        stratified_split(np.zeros(3, np.int8), 0.5, 0)


FOLDS, PARTS = [0.1] * 10, [0.8, 0.2]


def algorithm_1(labels, proportions, seed):
    """Sechidis, Tsoumakas and Vlahavas (2011), Algorithm 1, line by line: part of each row; sizes only nearly right."""
    rng = np.random.default_rng(seed)
    positive = labels == 1
    desired = len(labels) * np.array(proportions)
    desired_of = positive.sum(0)[:, None] * np.array(proportions)
    part = np.full(len(labels), -1)
    while (left := positive[part < 0].sum(0)).any():
        label = np.where(left > 0, left, len(labels) + 1).argmin()
        for row in rng.permutation(np.flatnonzero((part < 0) & positive[:, label])):
            best = np.flatnonzero(desired_of[label] == desired_of[label].max())
            part[row] = rng.choice(best[desired[best] == desired[best].max()])
            desired_of[positive[row], part[row]] -= 1
            desired[part[row]] -= 1
    for row in np.flatnonzero(part < 0):
        part[row] = desired.argmax()
        desired[part[row]] -= 1
    return part


def deviation(labels, part):
    """Mean difference of a class's share in a part from its share in all (the paper's label distribution)."""
    positive = labels == 1
    return np.mean([np.abs(positive[part == j].mean(0) - positive.mean(0)) for j in range(part.max() + 1)])


@pytest.mark.parametrize("proportions", [FOLDS, PARTS, [0.5, 0.3, 0.2]])
def test_parts_are_as_good_as_those_of_the_plain_algorithm(proportions):
    labels = long_tail()
    ours, plain, at_random = [], [], []
    for seed in range(3):
        part = stratified_parts(labels, proportions, seed)
        assert part.dtype == np.int64 and part.shape == (len(labels),)
        np.testing.assert_array_equal(np.bincount(part), part_sizes(len(labels), proportions))
        ours.append(deviation(labels, part))
        plain.append(deviation(labels, algorithm_1(labels, proportions, seed)))
        at_random.append(deviation(labels, np.random.default_rng(seed).permutation(part)))
    assert np.mean(ours) < 1.1 * np.mean(plain)
    assert np.mean(ours) < 0.25 * np.mean(at_random)


def test_frequent_classes_are_even_although_sizes_are_exact():
    labels = long_tail(5000, 12)
    part = stratified_parts(labels, FOLDS, 0)
    held = np.stack([counts(labels[part == j])[0] for j in range(10)])
    assert np.abs(held - counts(labels)[0] / 10).max() < 2


def test_sizes_by_largest_remainder():
    assert part_sizes(10, [0.25, 0.25, 0.5]).tolist() == [3, 2, 5]
    assert part_sizes(11, [0.26, 0.34, 0.4]).tolist() == [3, 4, 4]  # 2.86, 3.74, 4.4
    assert part_sizes(9963, [6000 / 9963, 3963 / 9963]).tolist() == [6000, 3963]
    assert part_sizes(3000, [700 / 3000, 1 - 700 / 3000]).tolist() == [700, 2300]
    assert part_sizes(0, [0.5, 0.5]).tolist() == [0, 0]
    assert part_sizes(103, FOLDS).sum() == 103 and set(part_sizes(103, FOLDS)) == {10, 11}
    for wrong in ([0.5, 0.6], [1.5, -0.5], [], [0.5, np.nan]):
        with pytest.raises(ValueError, match="proportions"):
            part_sizes(10, wrong)


def test_rows_without_a_positive_are_spread_evenly():
    labels = long_tail(3000, 8)
    labels[:700] = 0
    labels[200:500] = -1
    part = stratified_parts(labels, FOLDS, 0)
    empty, unknown = ~(labels == 1).any(1), (labels == -1).any(1)
    for rows in (empty & unknown, empty & ~unknown):
        held = np.bincount(part[rows], minlength=10)
        assert held.max() - held.min() <= 1 and rows.sum() > 200
    part = stratified_parts(np.full((10, 3), -1, np.int8), PARTS, 0)
    assert np.bincount(part).tolist() == [8, 2]


@pytest.mark.parametrize("num_folds", [3, 5, 10])
def test_the_rest_of_a_fold_holds_every_class(num_folds):
    lost, lost_plainly = 0, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = np.zeros((200, 60), np.int8)
        for label in range(60):
            labels[rng.choice(40, rng.integers(1, 4), replace=False), label] = 1  # many share their rows
        ours = stratified_parts(labels, [1 / num_folds] * num_folds, seed)
        plain = algorithm_1(labels, [1 / num_folds] * num_folds, seed)
        for fold in range(num_folds):
            lost += np.sum(~labels[ours != fold].any(0) & (labels.sum(0) >= 2))
            lost_plainly += np.sum(~labels[plain != fold].any(0) & (labels.sum(0) >= 2))
    # One of three parts is not always free: a row can be the last of three classes that lie in three parts.
    assert lost <= (3 if num_folds == 3 else 0) < lost_plainly


def test_parts_seed_decides():
    labels = long_tail()
    first, again, other = (stratified_parts(labels, FOLDS, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_extreme_parts():
    assert stratified_parts(np.zeros((0, 3), np.int8), PARTS, 0).shape == (0,)
    for labels in (np.ones((10, 1)), np.zeros((10, 0)), np.ones((10, 5)), np.eye(10), -np.ones((10, 2))):
        labels = labels.astype(np.int8)
        assert np.bincount(stratified_parts(labels, PARTS, 0)).tolist() == [8, 2]
        assert np.bincount(stratified_parts(labels, [0, 1, 0], 0)).tolist() == [0, 10]
        assert not stratified_parts(labels, [1.0], 0).any()
        assert sorted(stratified_parts(labels, FOLDS, 0)) == list(range(10))
        assert stratified_parts(labels, [1 / 25] * 25, 0).max() < 25  # more parts than rows
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        stratified_parts(np.zeros(3, np.int8), PARTS, 0)
    with pytest.raises(ValueError, match="proportions"):
        stratified_parts(np.zeros((3, 1), np.int8), [0.5, 0.2], 0)


def test_a_labelled_tenth_covers_every_class():
    labels = long_tail(1000, 40)
    labelled = stratified_parts(labels, [0.1, 0.9], 0, covering_part=0) == 0
    assert labelled.sum() == 100
    assert (labels[labelled] == 1).any(0)[counts(labels)[0] >= 2].all()
    assert (stratified_parts(labels, [1.0, 0.0], 0, covering_part=0) == 0).all()
    assert (stratified_parts(labels, [0.0, 1.0], 0, covering_part=0) == 1).all()
