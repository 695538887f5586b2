"""Rules for the number that is reported: expectations enumerated, optima by brute force, gradients by differences."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxmlic.metrics import affine_rules
from jaxmlic.metrics.affine_rules import Rule


def chances(seed, num_images, num_labels):
    return np.random.default_rng(seed).beta(0.6, 1.2, (num_images, num_labels))


def enumerated_sums(p, given):
    """Expected sums of precision and recall over labels that some image has, and how many these are."""
    precision = recall = counted = 0.0
    for c in range(p.shape[1]):
        for outcome in itertools.product((0, 1), repeat=len(p)):
            y = np.array(outcome)
            chance = np.prod(np.where(y == 1, p[:, c], 1 - p[:, c]))
            if y.any():
                hits = (y * given[:, c]).sum()
                precision += chance * hits / max(given[:, c].sum(), 1)
                recall += chance * hits / y.sum()
                counted += chance
    return precision, recall, counted


def all_decisions(num_images, num_labels, k):
    if k is None:
        rows = [np.array(row, bool) for row in itertools.product((0, 1), repeat=num_labels)]
    else:
        rows = [np.isin(np.arange(num_labels), row) for row in itertools.combinations(range(num_labels), k)]
    return (np.stack(rows) for rows in itertools.product(rows, repeat=num_images))


def harmonic(a, b):
    return 2 * a * b / (a + b) if a + b else 0.0


def test_batch_expectations_are_those_of_all_outcomes():
    p = chances(0, 5, 3)
    p[0, 0], p[1, 0], p[:, 2] = 0.0, 1.0, 0.0
    given = np.random.default_rng(1).random(p.shape) < 0.5
    found = affine_rules.batch(p)
    precision, recall, counted = enumerated_sums(p, given)
    np.testing.assert_allclose(found.sums(given), (precision, recall), rtol=1e-9)
    assert found.counted == pytest.approx(counted)
    assert found.f1(given) == pytest.approx(harmonic(precision, recall) / counted)


@pytest.mark.parametrize(("k", "images", "labels"), [(1, 5, 3), (2, 4, 4), (None, 3, 3)])
def test_batch_decisions_against_all_decisions(k, images, labels):
    ratios = []
    for seed in range(12):
        p = chances(seed, images, labels)
        judge = affine_rules.batch(p)
        optimum = max(judge.f1(given) for given in all_decisions(images, labels, k))
        given = affine_rules.decide_batch(p, k)
        assert k is None or (given.sum(axis=1) == k).all()
        ratios.append(judge.f1(given) / optimum)
    assert max(ratios) <= 1 + 1e-9 and min(ratios) > 0.98 and np.mean(np.array(ratios) > 1 - 1e-6) >= 0.75


def test_expected_counts_are_poisson():
    rng = np.random.default_rng(0)
    n, g = rng.uniform(0, 4, 5), rng.uniform(0.1, 3, 5)
    h = rng.uniform(0, 1, 5) * np.minimum(n, g)
    n[0] = h[0] = 0.0  # never given
    counts = np.arange(1, 60)
    some_given = np.array([stats.poisson.pmf(counts, x).sum() for x in n])  # precision is the same however many
    some_true = np.array([stats.poisson.pmf(counts, x).sum() for x in g])
    precision = (some_given * h / np.maximum(n, 1e-12)).sum() / some_true.sum()
    recall = (some_true * h / g).sum() / some_true.sum()
    found = affine_rules.expected(n, h, g)
    np.testing.assert_allclose((found.CP, found.CR), (precision, recall), rtol=1e-6)
    assert pytest.approx(harmonic(precision, recall)) == found.CF1
    assert found.num_found == pytest.approx(sum(1 - stats.poisson.pmf(0, x) for x in h))


def test_a_rule_is_the_gradient_of_what_is_expected():
    rng = np.random.default_rng(3)
    n, g = rng.uniform(0.05, 6, 7), rng.uniform(0.1, 5, 7)
    h = rng.uniform(0.1, 0.9, 7) * np.minimum(n, g)
    rule = affine_rules._gradient(n, h, g, 2)

    def slope(c, dn, dh):
        step = np.eye(7)[c] * 1e-5
        ahead = affine_rules.expected(n + dn * step, h + dh * step, g).CF1
        return (ahead - affine_rules.expected(n - dn * step, h - dh * step, g).CF1) / 2e-5

    by_hits, by_given = (np.array([slope(c, *d) for c in range(7)]) for d in ((0, 1), (1, 0)))
    ratio = by_hits[0] / rule.scale[0]  # F is larger by one factor for all
    np.testing.assert_allclose(by_hits, rule.scale * ratio, rtol=1e-4)
    np.testing.assert_allclose(by_given, rule.offset * ratio, rtol=1e-4, atol=1e-9)


def worth(p, given, images):
    share = images / len(p)
    return affine_rules.expected(given.sum(axis=0) * share, (given * p).sum(axis=0) * share, p.sum(axis=0) * share).CF1


@pytest.mark.parametrize("k", [1, None])
def test_a_rule_against_all_decisions(k):
    """No decision on these images, of any form, is expected to give much more."""
    ratios = []
    for seed in range(10):
        p = chances(seed, 6 if k else 3, 3)
        rule, claimed = affine_rules.fit_means(p, k, images=30)
        given = rule.choose(p)
        assert worth(p, given, 30) == pytest.approx(claimed.CF1, rel=1e-5)
        ratios.append(claimed.CF1 / max(worth(p, other, 30) for other in all_decisions(*p.shape, k)))
    assert max(ratios) <= 1 + 1e-6 and min(ratios) > 0.95 and np.median(ratios) > 0.995


@pytest.mark.parametrize("k", [3, None])
def test_random_search_does_not_beat_a_rule(k):
    rng = np.random.default_rng(0)
    frequency = rng.beta(0.5, 8, 25)
    p = 1 / (1 + np.exp(-(np.log(frequency / (1 - frequency)) + rng.normal(0, 2, (400, 25)))))
    rule, found = affine_rules.fit_means(p, k, images=60)
    others = []
    for _ in range(150):
        spread = rng.choice([0.02, 0.1, 0.5])
        scale, offset = (x * rng.lognormal(0, spread, 25) for x in (rule.scale, rule.offset))
        others.append(worth(p, Rule(scale, offset, k).choose(p), 60))
    for power in np.linspace(0, 1, 11) if k else ():
        others.append(worth(p, Rule(frequency**-power, np.zeros(25), k).choose(p), 60))
    assert max(others) * (1 - 1e-3) < found.CF1


def test_overall_f1_and_utility_against_all_decisions():
    for seed in range(5):
        p = chances(seed, 2, 4)
        rule, claimed = affine_rules.fit_overall(p)
        decisions = list(all_decisions(2, 4, None))
        f1 = [2 * p[given].sum() / (given.sum() + p.sum()) for given in decisions]
        given = rule.choose(p)
        assert claimed == pytest.approx(max(f1)) == 2 * p[given].sum() / (given.sum() + p.sum())
        for cost in (0.25, 1.0, 4.0):
            utility = [p[given].sum() - cost * (1 - p[given]).sum() for given in decisions]
            given = affine_rules.utility_rule(4, cost).choose(p)
            assert p[given].sum() - cost * (1 - p[given]).sum() == pytest.approx(max(utility))


@pytest.mark.parametrize("k", [1, 5, None])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (6, 1), (6, 3)])
def test_extremes(k, shape):
    """Few images and labels, fewer labels than k, a label that nothing has, ties."""
    p = np.full(shape, 0.25)
    p[:, -1] = 0.0
    rule, found = affine_rules.fit_means(p, k, images=10)
    for given in (rule.choose(p), affine_rules.decide_batch(p, k)):
        assert given.shape == shape and np.isfinite([found.CF1, *rule.scale, *rule.offset]).all()
        if k is not None:
            assert (given.sum(axis=1) == min(k, shape[1])).all()
    assert rule.choose(p[:0]).shape == (0, shape[1])
    tied = Rule(np.ones(4), np.zeros(4), 2).choose(np.full((2, 4), 0.5))
    np.testing.assert_array_equal(tied, [[True, True, False, False]] * 2)


def test_a_batch_gains_from_knowing_itself():
    rng = np.random.default_rng(5)
    frequency = rng.beta(0.5, 8, 30)
    p = 1 / (1 + np.exp(-(np.log(frequency / (1 - frequency)) + rng.normal(0, 2, (240, 30)))))
    rule, _ = affine_rules.fit_means(p[:200], 3, images=40)
    judge = affine_rules.batch(p[200:])
    plain = affine_rules.best(p[200:].astype(np.float32), 3)
    assert judge.f1(plain) < judge.f1(rule.choose(p[200:])) < judge.f1(affine_rules.decide_batch(p[200:], 3))
