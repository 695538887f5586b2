"""Weighted reports against reports of images that are really repeated; intervals and paired tests against scipy."""

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from jaxmlic import metrics
from jaxmlic.metrics import bootstrap, report
from jaxmlic.metrics.weighted import NUMBERS, WeightedReport


def make(seed, num_images=40, num_classes=6, unknown=0.0, ties=False):
    """Random scores and labels; the last class has no positive, the one before it a single one."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, num_classes)) < 0.3).astype(np.int8)
    labels[:, -2:] = 0
    labels[3, -2] = 1
    scores = (rng.normal(size=labels.shape) + labels).astype(np.float32)
    if ties:
        scores = np.round(scores * 2) / 2 + np.float32(0)
    labels[rng.random(labels.shape) < unknown] = -1
    return scores, labels


PROTOCOLS = [name for name in metrics.PROTOCOLS if name != "path"]


@pytest.mark.parametrize("unknown", [0.0, 0.2])
@pytest.mark.parametrize("ties", [False, True])
def test_weights_are_repetitions(unknown, ties):
    scores, labels = make(0, unknown=unknown, ties=ties)
    found = [report.decisions(scores, labels, name, threshold=0.3) for name in PROTOCOLS]
    draws = next(bootstrap.resample_counts(len(labels), 12, seed=1))
    draws[:, -1] = 0
    draws[(labels == 1).sum(axis=1) == 0, -1] = 2  # images without a label only, where there are any
    numbers = WeightedReport(found).numbers(draws)
    for name, own in zip(PROTOCOLS, numbers, strict=True):
        for d in range(draws.shape[1]):
            rows = np.repeat(np.arange(len(labels)), draws[:, d].astype(int))
            wanted = metrics.evaluate(scores[rows], labels[rows], name, threshold=0.3)
            assert tuple(own) == NUMBERS
            for key in NUMBERS:
                np.testing.assert_allclose(own[key][d], wanted[key], rtol=1e-6, err_msg=f"{name} {key} {d}")


def test_weighted_ap_is_scikit_learn_s():
    scores, labels = make(2, num_images=80, num_classes=3, ties=True)
    weights = np.random.default_rng(0).integers(0, 4, (80, 5)).astype(np.float32)
    for c in range(3):
        one = WeightedReport([report.decisions(scores[:, [c]], labels[:, [c]])]) if labels[:, c].any() else None
        if one is None:
            continue
        for d, found in enumerate(one.numbers(weights)[0]["mAP"]):
            if not weights[labels[:, c] == 1, d].any():
                assert np.isnan(found)
                continue
            wanted = average_precision_score(labels[:, c], scores[:, c], sample_weight=weights[:, d])
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_classes_of_the_means_are_those_of_the_whole():
    scores, labels = make(3)
    found = report.decisions(scores, labels, min_positives=5)
    once = np.ones((len(labels), 1), np.float32)
    assert WeightedReport([found]).numbers(once)[0]["mAP"][0] == pytest.approx(
        metrics.evaluate(scores, labels, min_positives=5)["mAP"], rel=1e-6
    )


def test_percentile_interval_is_scipy_s():
    """The same stream of resamples, so the same interval."""
    scores, labels = make(4, num_images=60)
    own = bootstrap.bootstrap([WeightedReport([report.decisions(scores, labels, threshold=0.0)])], 60, 200, seed=7)

    def of1(rows):
        return metrics.evaluate(scores[rows], labels[rows], threshold=0.0)["OF1"]

    wanted = stats.bootstrap(
        (np.arange(60),),
        of1,
        n_resamples=200,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(7),
    )
    np.testing.assert_allclose(bootstrap.interval(own[0][0]["OF1"]), tuple(wanted.confidence_interval), rtol=1e-6)


@pytest.mark.parametrize(("num_images", "draws", "exact"), [(8, 256, True), (30, 4000, False)])
def test_permutation_of_pairs_is_scipy_s(num_images, draws, exact):
    """A mean over images (IF1's parts, top1) has a closed route in scipy; few images are enumerated by both."""
    scores, labels = make(5, num_images=num_images, num_classes=4)
    labels[:, 0] = 1  # every image counts
    others = (scores + np.random.default_rng(1).normal(size=scores.shape)).astype(np.float32)
    a, b = (report.decisions(x, labels, threshold=0.5) for x in (scores, others))
    assert bootstrap.is_exact(num_images, draws) == exact
    null = bootstrap.permute_pairs([a], [b], draws, seed=3)[0]
    for name, x, y in (("MAP@10", a.ap_at_10, b.ap_at_10), ("IP", a.precision, b.precision)):
        observed = x.mean() - y.mean()
        found = bootstrap.permutation_p(observed, null[name], exact)
        wanted = stats.permutation_test(
            (x, y),
            lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=draws,
            rng=np.random.default_rng(0),
        ).pvalue
        np.testing.assert_allclose(found, wanted, rtol=1e-9 if exact else 0.25)


def test_permuted_map_by_enumeration():
    """Of seven images all 128 arrangements, each ranked anew; the two models have different scales."""
    scores, labels = make(6, num_images=7, num_classes=4, ties=True)
    others = 100 + 7 * np.random.default_rng(2).normal(size=scores.shape).astype(np.float32)
    a, b = report.decisions(scores, labels), report.decisions(others, labels)
    null = bootstrap.permute_pairs([a], [b], 128)[0]["mAP"]
    ranks = [stats.rankdata(x, axis=0) for x in (scores, others)]
    wanted = []
    for stay in itertools.product([False, True], repeat=7):
        stay = np.array(stay)[:, None]
        first, second = np.where(stay, *ranks), np.where(stay, *ranks[::-1])
        wanted.append(metrics.evaluate(first, labels)["mAP"] - metrics.evaluate(second, labels)["mAP"])
    np.testing.assert_allclose(np.sort(null), np.sort(wanted), atol=1e-6)


def test_bootstrap_p_holds_its_level():
    """Under "no difference" about a twentieth of the tests is below 0.05; a large difference is found."""
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(200):
        x = rng.normal(size=50)
        draws = np.array([x[rng.integers(0, 50, 50)].mean() for _ in range(200)])
        below += bootstrap.bootstrap_p(draws) < 0.05
    assert 3 <= below <= 24
    assert bootstrap.bootstrap_p(rng.normal(5, 1, 999)) == 2 / 1000
    assert bootstrap.bootstrap_p(np.zeros(10)) == 1.0


def test_holm_by_hand():
    assert bootstrap.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = bootstrap.holm([0.6, float("nan"), 0.7])
    assert adjusted[0] == 1.0 and np.isnan(adjusted[1]) and adjusted[2] == 1.0
    # Against the definition: the i-th smallest is compared with alpha / (m - i).
    rng = np.random.default_rng(0)
    p = rng.random(12) ** 3
    for alpha in (0.01, 0.05, 0.2):
        ranked = np.argsort(p)
        rejected = np.zeros(12, bool)
        for i, test in enumerate(ranked):
            if p[test] > alpha / (12 - i):
                break
            rejected[test] = True
        np.testing.assert_array_equal(np.array(bootstrap.holm(p)) <= alpha, rejected)


def test_undefined_everywhere_without_a_warning():
    scores, labels = np.zeros((5, 2), np.float32), np.zeros((5, 2), np.int8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = bootstrap.bootstrap([WeightedReport([report.decisions(scores, labels)])], 5, 10)[0][0]
        assert np.isnan(own["mAP"]).all() and np.isnan(bootstrap.interval(own["mAP"])).all()
        assert np.isnan(bootstrap.bootstrap_p(own["mAP"])) and np.isnan(bootstrap.permutation_p(0.0, own["mAP"]))
