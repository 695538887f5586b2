"""Stratified splits: exact sizes, proportions against random splits, every class kept; counts by hand."""

import time

import numpy as np
import pytest

from jaxmlic.data.labels import counts, stratified_split


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


def test_large_splits_take_seconds():
    labels = long_tail(100_000, 80)
    start = time.perf_counter()
    stratified_split(labels, 0.1, 0)
    assert time.perf_counter() - start < 10
