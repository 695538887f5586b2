"""Hill, SPLC and the partial asymmetric loss against transcriptions of their authors' code into numpy, float64."""

import numpy as np
import pytest
from definitions import compiled, example_batch


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def hill_of(logits, targets, lamb=1.5, margin=1.0, gamma=2.0):
    """`Hill` of losses.py, the terms [B, C] of known labels."""
    pred_pos, pred_neg = sigmoid(logits - margin), sigmoid(logits)
    focal_weight = ((1 - pred_pos) * targets + (1 - targets)) ** gamma
    los_pos = targets * np.log(pred_pos)
    los_neg = (1 - targets) * -(lamb - pred_neg) * pred_neg**2
    return -(los_pos + los_neg) * focal_weight


def splc_of(logits, targets, tau=0.6, margin=1.0, gamma=2.0):
    """`SPLC` of losses.py from its `change_epoch` on."""
    logits = np.where(targets == 1, logits - margin, logits)
    targets = np.where(sigmoid(logits) > tau, 1, targets)
    pred = sigmoid(logits)
    focal_weight = ((1 - pred) * targets + pred * (1 - targets)) ** gamma
    return -(targets * np.log(pred) + (1 - targets) * np.log(1 - pred)) * focal_weight


@pytest.mark.parametrize(
    ("name", "transcribed", "options"),
    [
        ("hill", hill_of, {}),
        ("hill", hill_of, {"lamb": 2.0, "margin": 0.5, "gamma": 1.0}),
        ("splc", splc_of, {}),
        ("splc", splc_of, {"tau": 0.8, "margin": 0.0, "gamma": 0.5}),
        ("splc", splc_of, {"tau": 1.0}),  # the first epoch: the focal margin loss
    ],
)
def test_losses_for_missing_labels_equal_the_authors_code(name, transcribed, options):
    logits, labels = example_batch(3, scale=3)
    terms = transcribed(logits, np.maximum(labels, 0), **options)
    found, gradients = compiled(name, **options)(logits, labels)
    np.testing.assert_allclose(found, np.where(labels == -1, 0, terms).mean(-1), rtol=1e-4, atol=1e-6)
    step = 1e-4
    ends = [
        transcribed(logits.astype(np.float64) + sign * step, np.maximum(labels, 0), **options) for sign in (1.0, -1.0)
    ]
    slopes = np.where(labels == -1, 0, ends[0] - ends[1]) / (2 * step) / labels.shape[1]
    np.testing.assert_allclose(gradients, slopes, rtol=2e-3, atol=1e-5)


def partial_of(
    logits, targets, mode, gamma_pos=0, gamma_neg=1, gamma_unann=2, clip=0, topk=5, prior=None, threshold=0.05
):
    """`PartialSelectiveLoss` and `edit_targets_parital_labels`, the weighted terms [B, C]; its exponents of p_t."""
    pos, neg, unann = ((targets == value).astype(float) for value in (1, 0, -1))
    xs_pos = sigmoid(logits)
    xs_neg = np.minimum(1 - xs_pos + clip, 1)
    weights = np.ones(targets.shape)
    if mode == "ignore":
        weights[targets == -1] = 0
    if mode == "selective":
        if prior is not None:
            weights[:, np.asarray(prior) > threshold] = 0
            weights = ((weights + (targets != -1)) > 0).astype(float)
        cond = np.flatnonzero(targets.flatten() == -1)
        order = np.argsort(xs_neg.flatten()[cond], kind="stable")
        flat = weights.flatten()
        flat[cond[order[: topk * len(targets)]]] = 0
        weights = flat.reshape(targets.shape)
    bce = pos * np.log(xs_pos) + neg * np.log(xs_neg) + unann * np.log(xs_neg)
    focus = (1 - xs_pos * pos - xs_neg * (neg + unann)) ** (gamma_pos * pos + gamma_neg * neg + gamma_unann * unann)
    return -bce * focus * weights, focus * weights


PARTIAL = [
    ("ignore", {}, {}),
    ("negative", {}, {}),
    ("ignore", {"gamma_neg": 0.0, "gamma_unknown": 0.0}, {"gamma_neg": 0, "gamma_unann": 0}),  # partial BCE
    ("negative", {"gamma_neg": 0.0, "gamma_unknown": 0.0}, {"gamma_neg": 0, "gamma_unann": 0}),
    (
        "selective",
        {"gamma_neg": 0.0, "gamma_unknown": 0.0, "likelihood": 1},
        {"gamma_neg": 0, "gamma_unann": 0, "topk": 1},
    ),
    ("selective", {"likelihood": 1}, {"topk": 1}),
    ("selective", {"likelihood": 0, "clip": 0.05, "gamma_pos": 1.0}, {"topk": 0, "clip": 0.05, "gamma_pos": 1}),
    (
        "selective",
        {"likelihood": 1, "prior": (0.1, 0.0, 0.5, 0.01, 0.04, 0.2, 0.0, 0.0, 0.06), "gamma_unknown": 4.0},
        {"topk": 1, "prior": (0.1, 0.0, 0.5, 0.01, 0.04, 0.2, 0.0, 0.0, 0.06), "gamma_unann": 4},
    ),
]


@pytest.mark.parametrize(("mode", "options", "transcribed"), PARTIAL)
def test_partial_asymmetric_equals_the_authors_code(mode, options, transcribed):
    logits, labels = example_batch(4, scale=2)
    labels[2, 0] = 0  # every example knows something: one that does not has the value 0 here alone
    terms, focus = partial_of(logits, labels, mode, **transcribed)
    found, gradients = compiled("partial_asymmetric", mode=mode, **options)(logits, labels)
    np.testing.assert_allclose(found, terms.mean(-1), rtol=1e-4, atol=1e-6)
    # Through the logarithm alone: of log p it is 1 - p, of log q -p (1 - p) / q, nothing where q is clipped at 1.
    p, clip = sigmoid(logits), options.get("clip", 0.0)
    slope = np.where(labels == 1, -(1 - p), np.where(1 - p + clip < 1, p * (1 - p) / (1 - p + clip), 0))
    np.testing.assert_allclose(gradients, focus * slope / labels.shape[1], rtol=1e-3, atol=1e-6)


def test_partial_extremes():
    """Examples that know nothing, weights of 0 and batches without unknown labels, in every mode."""
    logits, labels = example_batch(6)
    for mode, options in (("negative", {}), ("selective", {"likelihood": 1})):
        loss = compiled("partial_asymmetric", mode=mode, **options)
        values, gradients = loss(logits, labels)
        assert values[2] == 0 and not gradients[2].any()  # knows nothing
        assert not np.any(loss(logits, np.full_like(labels, -1))[0])
        weights = np.ones(labels.shape, np.float32)
        weights[5] = 0
        assert loss(logits, labels, weights)[0][5] == 0
        unlike = np.abs(labels)
        np.testing.assert_allclose(
            loss(logits, unlike)[0], compiled("partial_asymmetric")(logits, unlike)[0], rtol=1e-6, atol=1e-7
        )
    one = np.full_like(labels, -1)
    one[:, 4] = 1  # a single positive label: the others count as absent, or are left out as likely
    negative, selective = (
        compiled("partial_asymmetric", mode=mode, **options)(logits, one)[0]
        for mode, options in (("negative", {}), ("selective", {"likelihood": 1}))
    )
    assert np.all(selective <= negative + 1e-7) and np.any(selective < negative)
