"""The ramp, and losses over pairs of labels, against loops over pairs and finite differences."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from definitions import PAIRWISE, by_definition, compiled, example_batch, hinge, single
from jax.extend.core import jaxprs_in_params

from jaxmlic import losses
from jaxmlic.errors import UserError
from jaxmlic.losses import pairwise

WAYS = pytest.mark.parametrize("looped", [pairwise.LOOPED, -1], ids=["looping", "sorting"])


@pytest.mark.parametrize("t", [-1e30, -5.0, -0.76, -0.75, -0.5, 0.0, 0.999, 1.0, 1.5, 1e30])
def test_ramp_by_hand(t):
    by_hand = 1.75 if t <= -0.75 else 0.0 if t >= 1 else 1 - t
    np.testing.assert_allclose(losses.ramp(jnp.float32(t)), by_hand, rtol=1e-6, atol=1e-6)
    slope = jax.grad(losses.ramp)(t)
    if t not in (-0.75, 1.0):
        assert slope == (-1.0 if -0.75 < t < 1 else 0.0)
    assert -1 <= slope <= 0
    np.testing.assert_allclose(losses.ramp(jnp.float32(t), None), hinge(np.float32(t)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("s", [0.0, -0.3, -0.75, -0.99])
def test_ramp_is_a_difference_of_hinges(s):
    t = np.linspace(-3, 3, 241)
    expected = [hinge(x) - hinge(x, s) for x in t]
    np.testing.assert_allclose(losses.ramp(jnp.float32(t), s), expected, atol=1e-6)


@pytest.mark.parametrize("leak", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("t", [-3.0, -0.9, -0.5, 0.4, 1.5])
def test_a_leak_is_a_share_of_the_hinge(t, leak):
    """s = -0.8 as released; beyond the end the slope is the leak's share of the hinge's."""
    value, slope = jax.value_and_grad(lambda t: losses.ramp(t, -0.8, leak))(t)
    np.testing.assert_allclose(value, hinge(t) - (1 - leak) * hinge(t, -0.8), rtol=1e-6)
    np.testing.assert_allclose(slope, -leak if t < -0.8 else -1.0 if t < 1 else 0.0, rtol=1e-6)


@WAYS
def test_a_leak_of_0_is_the_ramp_and_of_1_the_hinge(looped):
    logits, labels = example_batch(5, scale=3)
    for end, same in (({"leak": 0.0}, {}), ({"leak": 1.0}, {"s": None})):
        leaking, plain = compiled("rmlc", looped, **end), compiled("rmlc", looped, **same)
        for found, expected in zip(leaking(logits, labels), plain(logits, labels), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leak": 1.5}, r"leak = 1.5 is not in \[0, 1\]"),
        ({"s": None, "leak": 0.1}, "s = None has no end to leak beyond"),
    ],
)
def test_a_leak_that_cannot_be(options, message):
    for call in (lambda: losses.ramp(0.0, **options), lambda: losses.rmlc(jnp.zeros(3), jnp.ones(3), **options)):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize("s", [0.75, -1.0, 0.1, float("nan")])
def test_ramp_needs_s_between_minus_one_and_zero(s):
    for call in (lambda: losses.ramp(0.0, s), lambda: losses.rmlc(jnp.zeros(3), jnp.array([1, 0, 0]), s=s)):
        with pytest.raises(UserError, match=r"loss option s = .* is not in \(-1, 0\]"):
            call()


def test_rmlc_and_warp_by_hand():
    """One positive at 0; negatives at 0.5 (margin violated), -0.5 (violated), 3 (beyond the ramp), -2 (in order)."""
    logits, labels = [0.0, 0.5, -0.5, 3.0, -2.0, 9.0], [1, 0, 0, 0, 0, -1]
    f3 = 1 + 1 / 2 + 1 / 3
    np.testing.assert_allclose(single("warp", logits, labels)[0], f3 * (1.5 + 0.5 + 4), rtol=1e-6)
    pairs, margins = f3 * (1.5 + 0.5 + 1.75), 1 + 1.5 + 0.5 + 1.75 + 0
    np.testing.assert_allclose(single("rmlc", logits, labels)[0], pairs + 5 * margins, rtol=1e-6)
    values, _ = single("rmlc", logits, labels, s=-0.3, k=2.0)
    np.testing.assert_allclose(values, f3 * (1.3 + 0.5 + 1.3) + 2 * (1 + 1.3 + 0.5 + 1.3), rtol=1e-6)


def test_lsep_by_hand():
    values, _ = single("lsep", np.log([1.0, 2.0, 3.0, 5.0]), [1, 1, 0, 0])
    np.testing.assert_allclose(values, np.log(1 + (3 + 5) * (1 / 1 + 1 / 2)), rtol=1e-6)


@WAYS
@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("kind", ["random", "ties", "one class", "wide", "weights"])
def test_pairwise_losses_equal_loops(name, kind, looped):
    logits, labels = example_batch(1, (8, 1) if kind == "one class" else (8, 9))
    weights = None
    if kind == "ties":  # quarters: many pairs are equal, and many on the kinks of the ramp
        logits = np.round(logits * 4) / 4
    if kind == "wide":
        logits *= 30
    if kind == "weights":
        weights = np.random.default_rng(2).choice([0.0, 0.5, 1.0, 3.0], labels.shape)
    known = labels if weights is None else np.where(weights > 0, labels, -1)
    loss, options = PAIRWISE[name]
    found, _ = compiled(loss, looped, **options)(logits, labels, 1.0 if weights is None else weights)
    np.testing.assert_allclose(found, by_definition(name, logits, known, weights), rtol=2e-5, atol=1e-5)


@WAYS
@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_pairwise_gradients_equal_finite_differences(name, kind, looped):
    logits, labels = example_batch(3)
    if kind == "ties":  # differences 0, 0.4, 0.8, ...: pairs of equals, none on a kink
        logits = np.float32(np.round(logits) * 0.4)
    loss, options = PAIRWISE[name]
    _, found = compiled(loss, looped, **options)(logits, labels)
    base, step, expected = logits.astype(np.float64), 1e-6, np.zeros(logits.shape)
    for c in range(logits.shape[1]):  # examples are independent: move the same label in all of them
        delta = np.zeros(logits.shape)
        delta[:, c] = step
        ends = [by_definition(name, base + sign * delta, labels, at=base) for sign in (1, -1)]
        expected[:, c] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not found[labels == -1].any()


@pytest.mark.parametrize(("name", "options"), [("warp", {}), ("rmlc", {"s": -0.3, "k": 0.0})])
@pytest.mark.parametrize("kind", ["far from 0", "bfloat16 grid"])
@pytest.mark.parametrize("looped", [1000, pairwise.LOOPED], ids=["looping", "sorting, about 100 positives"])
def test_a_thousand_classes(name, options, kind, looped):
    """All pairs at once in numpy float64; the grid puts many pairs within rounding of a kink (0.3 is not on it)."""
    rng = np.random.default_rng(13)
    logits, labels = rng.normal(size=(4, 1000)) * 5, (rng.random((4, 1000)) < 0.1).astype(np.int8)
    logits = np.float32(logits + 100) if kind == "far from 0" else np.float32(logits.astype(jnp.bfloat16))
    values, gradients = compiled(name, looped, **options)(logits, labels)
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, 1001))])
    for z, y, value, gradient in zip(logits.astype(np.float64), labels, values, gradients, strict=True):
        t = z[y == 1][:, None] - z[y == 0]
        f = harmonic[np.sum(t < 1, axis=1)][:, None]
        expected, slope = f * np.maximum(0, 1 - t), f * (t < 1)
        if name == "rmlc":
            expected, slope = np.minimum(expected, 1.3 * f), slope * (t > -0.3)
        np.testing.assert_allclose(value, expected.sum(), rtol=1e-5)
        np.testing.assert_allclose(gradient[y == 1], -slope.sum(1), rtol=1e-5)
        np.testing.assert_allclose(gradient[y == 0], slope.sum(0), rtol=2e-5, atol=1e-4)


@WAYS
def test_ordered_pairs_have_a_gradient_of_exactly_zero(looped):
    """Weights that do not sum exactly, and negatives below every positive's margin, hidden among far pairs."""
    rng = np.random.default_rng(4)
    logits = np.concatenate([rng.uniform(-9, -8, 40), rng.uniform(0, 0.5, 40), rng.uniform(8, 9, 40)])
    labels = np.concatenate([np.zeros(40, int), np.tile([0, 1], 20), np.ones(40, int)])
    weights = jnp.float32(rng.uniform(0.1, 1, 120))
    _, slopes = compiled("warp", 120 if looped > 0 else -1)(np.float32(logits), labels, weights)
    assert not slopes[:40].any() and not slopes[80:].any() and (slopes[40:80] != 0).all()


def test_saturated_wrong_labels_do_not_pull():
    """A positive far below all negatives: the hinge pulls, the ramp has let go."""
    logits, labels = [-6.0, 5.0, 4.0], [1, 0, 0]
    assert not single("rmlc", logits, labels)[1].any()
    np.testing.assert_allclose(single("warp", logits, labels)[1], [-3.0, 1.5, 1.5])


@pytest.mark.parametrize("name", ["warp", "rmlc"])
def test_sampled_rank_has_the_distribution_of_drawing_with_replacement(name):
    """m = 9 known labels, 6 negatives of which 2 violate: r = floor(8 / n), n geometric with probability 1 / 3."""
    logits = np.float32([0.0, 0.4, -0.5, -4.0, -5.0, -6.0, -7.0, 6.0, 7.0, 1.0])
    labels = np.array([1, 0, 0, 0, 0, 0, 0, 1, 1, -1])
    sampled = jax.jit(functools.partial(getattr(losses, name), rank="sampled"))
    batch = [np.tile(x, (4000, 1)) for x in (logits, labels)]
    batch[1][0], batch[1][1], batch[1][2] = -abs(labels), abs(labels) | 1, -1  # no positive, no negative, nothing known
    found = np.asarray(sampled(*batch, None, jax.random.key(0)))
    again = np.asarray(sampled(*batch, None, jax.random.key(1)))
    np.testing.assert_array_equal(found[:3], again[:3])
    assert (found != again).any()

    pairs = 1.4 + 0.5
    margins = 5 * (1 + 1.4 + 0.5) if name == "rmlc" else 0.0
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, 9))])
    f = np.array([harmonic[8 // n] for n in range(1, 9)])  # from 9 draws on, F(0) = 0
    probability = np.array([(2 / 3) ** (n - 1) / 3 for n in range(1, 9)])
    values = (found[3:] - margins) / pairs
    assert np.all(np.min(abs(values[:, None] - np.append(f, 0)), axis=1) < 1e-4)
    mean, spread = probability @ f, math.sqrt(probability @ f**2 - (probability @ f) ** 2)
    assert abs(values.mean() - mean) < 4 * spread / math.sqrt(len(values))


@pytest.mark.parametrize("name", ["rmlc", "warp", "lsep"])
@pytest.mark.parametrize("rank", pairwise.RANKS)
def test_no_array_of_pairs(name, rank):
    """Neither the loss nor its gradient has, at any depth, an array that grows as C^2."""
    logits, labels = jnp.zeros((2, 1000)), jnp.zeros((2, 1000), jnp.int8)
    loss = losses.lsep if name == "lsep" else functools.partial(getattr(losses, name), key=jax.random.key(0), rank=rank)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(lambda z: loss(z, labels).sum()))(logits).jaxpr

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for sub in jaxprs_in_params(equation.params):
                yield from sizes(sub)

    assert max(sizes(jaxpr)) <= 8 * logits.size
