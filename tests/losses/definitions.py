"""Losses by their definitions in float64, and compiled ones with their gradients."""

import functools
import math
from unittest import mock

import jax
import numpy as np

from jaxmlic import losses
from jaxmlic.losses import named, pairwise

LOSSES = tuple(named.LOSSES)


PAIRWISE = {
    "rmlc": ("rmlc", {}),
    "rmlc with s and k": ("rmlc", {"s": -0.3, "k": 2.0}),
    "rmlc of hinges": ("rmlc", {"s": None}),
    "rmlc with a leak": ("rmlc", {"s": -0.7, "leak": 0.1}),
    "rmlc that only leaks": ("rmlc", {"leak": 1.0}),
    "warp": ("warp", {}),
    "lsep": ("lsep", {}),
}


@functools.cache
def compiled(name, looped=pairwise.LOOPED, **options):
    """(logits, labels, weights) -> the loss [B] and the gradient [B, C] of its sum, one program for a whole session.

    looped: stands for pairwise.LOOPED, -1 = ranking losses always sort."""

    def total(logits, labels, weights):
        values = getattr(losses, name)(logits, labels, weights, **options)
        return values.sum(), values

    def call(logits, labels, weights=1.0):
        with mock.patch.object(pairwise, "LOOPED", looped):
            (_, values), gradients = program(logits, labels, np.broadcast_to(np.float32(weights), labels.shape))
        return np.asarray(values), np.asarray(gradients)

    program = jax.jit(jax.value_and_grad(total, has_aux=True))
    return call


def single(name, logits, labels, **options):
    """Value [] and gradient [C] of one example, padded with unknown labels to the shape of `example_batch`."""
    padded = np.zeros((8, 9), np.float32), np.full((8, 9), -1, np.int8)
    padded[0][0, : len(logits)], padded[1][0, : len(labels)] = logits, labels
    values, gradients = compiled(name, **options)(*padded)
    assert not values[1:].any() and not gradients[0, len(logits) :].any()
    return values[0], gradients[0, : len(logits)]


def hinge(t, a=1.0):
    return max(0.0, a - t)


def ramp64(t, s=-0.75, leak=0.0):
    """H_1 - (1 - leak) H_s, as the released code writes it for leak = 0.1."""
    return hinge(t) if s is None else hinge(t) - (1 - leak) * hinge(t, s)


def rank_weights(logits, labels):
    """F(r_j) of every positive of one example by counting: {j: F}."""
    weights = {}
    for j in np.flatnonzero(labels == 1):
        rank = sum(logits[k] > logits[j] - 1 for k in np.flatnonzero(labels == 0))
        weights[j] = math.fsum(1 / i for i in range(1, rank + 1))
    return weights


def by_definition(name, logits, labels, weights=None, at=None):
    """A pairwise loss [B] from its definition: loops over examples, positives and negatives in float64.

    F is taken at the logits `at`, so that finite differences see it as the constant it is for the gradient.
    """
    logits, values = np.asarray(logits, np.float64), []
    weights = np.ones(labels.shape) if weights is None else np.broadcast_to(weights, labels.shape).astype(np.float64)
    options = PAIRWISE[name][1]
    s, k, leak = options.get("s", -0.75), options.get("k", 5.0), options.get("leak", 0.0)
    for z, y, w, z_at in zip(logits, labels, weights, logits if at is None else at, strict=True):
        f, value = rank_weights(z_at, y), 0.0
        for positive in np.flatnonzero(y == 1):
            for negative in np.flatnonzero(y == 0):
                t, pair = z[positive] - z[negative], math.sqrt(w[positive] * w[negative])
                if name == "lsep":
                    value += pair * math.exp(-t)
                else:
                    value += pair * f[positive] * (hinge(t) if name == "warp" else ramp64(t, s, leak))
        if name == "lsep":
            value = math.log1p(value)
        if name.startswith("rmlc"):
            value += k * sum(w[c] * ramp64((2 * y[c] - 1) * z[c], s, leak) for c in np.flatnonzero(y != -1))
        values.append(value)
    return np.array(values)


def example_batch(seed=0, shape=(8, 9), scale=1.5):
    """Logits float32 and labels int8 [B, C] in which row 0 has no positive, 1 no negative, 2 no known label."""
    rng = np.random.default_rng(seed)
    logits, labels = np.float32(rng.normal(size=shape) * scale), rng.integers(-1, 2, shape).astype(np.int8)
    labels[0], labels[1], labels[2] = -abs(labels[0]), abs(labels[1]), -1
    labels[1, labels[1] == 0] = 1
    return logits, labels
